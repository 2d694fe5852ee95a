"""The parts as gradio shows them: thin, with nothing computed here."""
