//! Frames to clients: warren.v1, encoded once and shared by every socket that gets them.
