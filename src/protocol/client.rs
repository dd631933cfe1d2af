//! Frames from clients: warren.v1, one JSON object per text message.
