"""The CPU preview engine: moves the lips, eyes and head of one portrait to a recording, without a GPU."""
