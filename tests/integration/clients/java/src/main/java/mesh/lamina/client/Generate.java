package mesh.lamina.client;

import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import java.util.Iterator;
import java.util.StringJoiner;
import java.util.concurrent.TimeUnit;
import lamina.router.v1.Router;
import lamina.router.v1.RouterServiceGrpc;

/**
 * Generates text over lamina.router.v1 with grpc-java and stubs made from proto/.
 *
 * <p>Arguments: ADDRESS PROMPT MAX_TOKENS. Prints one JSON object with text and token_ids.
 */
public final class Generate {
  private Generate() {}

  public static void main(String[] args) throws InterruptedException {
    ManagedChannel channel =
        Grpc.newChannelBuilder(args[0], InsecureChannelCredentials.create()).build();
    try {
      Router.GenerateRequest request =
          Router.GenerateRequest.newBuilder()
              .setText(args[1])
              .setMaxTokens(Integer.parseInt(args[2]))
              .setSampling(Router.Sampling.newBuilder().setTemperature(0f))
              .build();
      StringBuilder text = new StringBuilder();
      StringJoiner ids = new StringJoiner(",");
      boolean finished = false;
      Iterator<Router.GenerateResponse> events =
          RouterServiceGrpc.newBlockingStub(channel)
              .withDeadlineAfter(120, TimeUnit.SECONDS)
              .generate(request);
      while (events.hasNext()) {
        Router.GenerateResponse event = events.next();
        if (event.hasToken()) {
          text.append(event.getToken().getText());
          ids.add(Integer.toUnsignedString(event.getToken().getId()));
        } else if (event.hasFinished()) {
          text.append(event.getFinished().getText());
          finished = true;
        }
      }
      if (!finished) {
        throw new IllegalStateException("the stream ended without a finish reason");
      }
      System.out.println("{\"text\":" + quote(text) + ",\"token_ids\":[" + ids + "]}");
    } finally {
      channel.shutdown().awaitTermination(5, TimeUnit.SECONDS);
    }
  }

  private static String quote(CharSequence text) {
    StringBuilder out = new StringBuilder("\"");
    for (int i = 0; i < text.length(); i++) {
      char c = text.charAt(i);
      if (c == '"' || c == '\\') {
        out.append('\\').append(c);
      } else if (c < ' ' || c > '~') {
        out.append(String.format("\\u%04x", (int) c));
      } else {
        out.append(c);
      }
    }
    return out.append('"').toString();
  }
}
