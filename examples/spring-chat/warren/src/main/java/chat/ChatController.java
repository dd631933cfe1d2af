package chat;

import org.springframework.amqp.core.Message;
import org.springframework.amqp.rabbit.annotation.Exchange;
import org.springframework.amqp.rabbit.annotation.Queue;
import org.springframework.amqp.rabbit.annotation.QueueBinding;
import org.springframework.amqp.rabbit.annotation.RabbitListener;
import org.springframework.amqp.rabbit.core.RabbitTemplate;
import org.springframework.messaging.handler.annotation.Header;
import org.springframework.messaging.handler.annotation.Payload;
import org.springframework.messaging.handler.annotation.SendTo;
import org.springframework.stereotype.Controller;

@Controller
class ChatController {
    private final RabbitTemplate rabbit;

    ChatController(RabbitTemplate rabbit) {
        this.rabbit = rabbit;
    }

    @RabbitListener(bindings = @QueueBinding(value = @Queue("application.chat.say"), key = "chat.say",
            exchange = @Exchange(name = "warren.app", type = "topic")))
    @SendTo("warren.ingress/channel.lobby")
    Said say(@Payload Say say, @Header("warren-user") String user) {
        return new Said(user, say.text());
    }

    @RabbitListener(bindings = @QueueBinding(value = @Queue("application.chat.whisper"), key = "chat.whisper",
            exchange = @Exchange(name = "warren.app", type = "topic")))
    void whisper(@Payload Whisper whisper, @Header("warren-user") String user) {
        Said said = new Said(user, whisper.text());
        rabbit.convertAndSend("warren.ingress", "user." + whisper.to(), said, ChatController::whispers);
    }

    @RabbitListener(bindings = @QueueBinding(value = @Queue("application.chat.comes"), key = "user.online",
            exchange = @Exchange(name = "warren.events", type = "topic")))
    @SendTo("warren.ingress/channel.lobby")
    Said comes(@Payload Event event) {
        return new Said(event.user(), "(is here)");
    }

    @RabbitListener(bindings = @QueueBinding(value = @Queue("application.chat.goes"), key = "user.offline",
            exchange = @Exchange(name = "warren.events", type = "topic")))
    @SendTo("warren.ingress/channel.lobby")
    Said goes(@Payload Event event) {
        return new Said(event.user(), "(has left)");
    }

    private static Message whispers(Message message) {
        message.getMessageProperties().setType("/queue/whispers");
        return message;
    }
}
