"""The parts of the page: each a function of fitted layers and pictures that returns an Answer."""
