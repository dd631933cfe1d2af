package chat;

import org.springframework.amqp.support.converter.Jackson2JsonMessageConverter;
import org.springframework.boot.SpringApplication;
import org.springframework.boot.autoconfigure.SpringBootApplication;
import org.springframework.context.annotation.Bean;

@SpringBootApplication
public class Chat {
    @Bean
    Jackson2JsonMessageConverter json() {
        return new Jackson2JsonMessageConverter();
    }

    public static void main(String[] arguments) {
        SpringApplication.run(Chat.class, arguments);
    }
}
