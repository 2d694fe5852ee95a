"""What photo_faces.py needs beside the package: set-up, the face generator, and readers of the judges' weights."""
