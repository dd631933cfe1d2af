package chat;

import java.security.Principal;

import org.springframework.context.event.EventListener;
import org.springframework.messaging.handler.annotation.MessageMapping;
import org.springframework.messaging.handler.annotation.SendTo;
import org.springframework.messaging.simp.SimpMessagingTemplate;
import org.springframework.stereotype.Controller;
import org.springframework.web.socket.messaging.SessionConnectedEvent;
import org.springframework.web.socket.messaging.SessionDisconnectEvent;

@Controller
class ChatController {
    private final SimpMessagingTemplate messaging;

    ChatController(SimpMessagingTemplate messaging) {
        this.messaging = messaging;
    }

    @MessageMapping("/chat.say")
    @SendTo("/topic/lobby")
    Said say(Say say, Principal user) {
        return new Said(user.getName(), say.text());
    }

    @MessageMapping("/chat.whisper")
    void whisper(Whisper whisper, Principal user) {
        Said said = new Said(user.getName(), whisper.text());
        messaging.convertAndSendToUser(whisper.to(), "/queue/whispers", said);
    }

    @EventListener
    void comes(SessionConnectedEvent event) {
        messaging.convertAndSend("/topic/lobby", new Said(event.getUser().getName(), "(is here)"));
    }

    @EventListener
    void goes(SessionDisconnectEvent event) {
        messaging.convertAndSend("/topic/lobby", new Said(event.getUser().getName(), "(has left)"));
    }
}
