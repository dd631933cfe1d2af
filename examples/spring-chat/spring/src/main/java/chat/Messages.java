package chat;

record Say(String text) {}

record Whisper(String to, String text) {}

record Said(String from, String text) {}
