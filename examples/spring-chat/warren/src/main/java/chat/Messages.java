package chat;

record Say(String text) {}

record Whisper(String to, String text) {}

record Said(String from, String text) {}

/** What Warren tells of a user who comes or goes. */
record Event(String user) {}
