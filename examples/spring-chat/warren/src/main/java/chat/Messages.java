package chat;

import com.fasterxml.jackson.annotation.JsonIgnoreProperties;

record Say(String text) {}

record Whisper(String to, String text) {}

record Said(String from, String text) {}

/** What Warren tells of a user who comes or goes; it has more fields. */
@JsonIgnoreProperties(ignoreUnknown = true)
record Event(String user) {}
