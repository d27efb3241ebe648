"""The two ways a preview ends without a video."""


class BadInput(Exception):
    """The portrait, the recording or the wish cannot be made into a video; the text is for the user."""


class Stopped(Exception):
    """The service asked the engine to stop (SIGTERM)."""
