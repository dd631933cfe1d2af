import java.lang.reflect.Type;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

import org.springframework.messaging.converter.StringMessageConverter;
import org.springframework.messaging.simp.stomp.StompFrameHandler;
import org.springframework.messaging.simp.stomp.StompHeaders;
import org.springframework.messaging.simp.stomp.StompSession;
import org.springframework.messaging.simp.stomp.StompSessionHandlerAdapter;
import org.springframework.scheduling.concurrent.ThreadPoolTaskScheduler;
import org.springframework.web.socket.WebSocketHttpHeaders;
import org.springframework.web.socket.client.WebSocketClient;
import org.springframework.web.socket.client.standard.StandardWebSocketClient;
import org.springframework.web.socket.messaging.WebSocketStompClient;
import org.springframework.web.socket.sockjs.client.SockJsClient;
import org.springframework.web.socket.sockjs.client.WebSocketTransport;

/** Connects to the address of its argument, as pages and services that use Spring do; ends with 0 if all is as it should be. */
public class SpringClient {
    private static final long PATIENCE_S = 20;

    public static void main(String[] arguments) throws Exception {
        String url = arguments[0];
        WebSocketClient socket = new StandardWebSocketClient();
        if (url.startsWith("http")) {
            socket = new SockJsClient(List.of(new WebSocketTransport(socket)));
        }
        WebSocketStompClient client = new WebSocketStompClient(socket);
        ThreadPoolTaskScheduler scheduler = new ThreadPoolTaskScheduler();
        scheduler.initialize();
        client.setTaskScheduler(scheduler);
        client.setMessageConverter(new StringMessageConverter());

        BlockingQueue<String> errors = new LinkedBlockingQueue<>();
        StompSession session = connect(client, url, errors);
        session.setAutoReceipt(true);
        BlockingQueue<String> room = subscribe(session, "/topic/room");
        BlockingQueue<String> news = subscribe(session, "/user/queue/news");

        CompletableFuture<String> receipt = new CompletableFuture<>();
        StompSession.Receiptable sent = session.send("/topic/room", "to all: \u00e4\u00f6\u00fc");
        sent.addReceiptTask(headers -> receipt.complete(headers.getFirst("outcome")));
        sent.addReceiptLostTask(() -> receipt.complete("lost"));
        expect("published", receipt.get(PATIENCE_S, TimeUnit.SECONDS));
        expect("to all: \u00e4\u00f6\u00fc", room.poll(PATIENCE_S, TimeUnit.SECONDS));
        session.send("/user/spring/queue/news", "to me");
        expect("to me", news.poll(PATIENCE_S, TimeUnit.SECONDS));

        subscribe(session, "/topic/*");
        String error = errors.poll(PATIENCE_S, TimeUnit.SECONDS);
        if (error == null || !error.contains("wildcards")) {
            throw new AssertionError("an ERROR about wildcards, not " + error);
        }
        StompSession again = connect(client, url, errors);
        again.disconnect();
        System.out.println("all as it should be");
        System.exit(0);
    }

    private static StompSession connect(WebSocketStompClient client, String url, BlockingQueue<String> errors)
            throws Exception {
        StompHeaders connect = new StompHeaders();
        connect.setLogin("spring");
        connect.setPasscode("any");
        StompSessionHandlerAdapter handler = new StompSessionHandlerAdapter() {
            @Override
            public void handleFrame(StompHeaders headers, Object payload) {
                errors.add(headers.getFirst("message"));
            }

            @Override
            public void handleException(StompSession session, org.springframework.messaging.simp.stomp.StompCommand command,
                    StompHeaders headers, byte[] payload, Throwable exception) {
                exception.printStackTrace();
            }
        };
        return client.connectAsync(url, new WebSocketHttpHeaders(), connect, handler).get(PATIENCE_S, TimeUnit.SECONDS);
    }

    private static BlockingQueue<String> subscribe(StompSession session, String destination) {
        BlockingQueue<String> messages = new LinkedBlockingQueue<>();
        session.subscribe(destination, new StompFrameHandler() {
            @Override
            public Type getPayloadType(StompHeaders headers) {
                return String.class;
            }

            @Override
            public void handleFrame(StompHeaders headers, Object payload) {
                messages.add((String) payload);
            }
        });
        return messages;
    }

    private static void expect(String expected, String got) {
        if (!expected.equals(got)) {
            throw new AssertionError("expected " + expected + ", got " + got);
        }
    }
}
