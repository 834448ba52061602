// Passthrough and count on Kafka Streams with its default settings, measured over a window of messages: the peer of
// the benches. Commits every second, as ours does; one stream thread.
//
// usage: Peer BOOTSTRAP passthrough|count INPUT OUTPUT WARM-UP WINDOW
// Reads INPUT from its beginning; lets WARM-UP messages pass, measures the CPU of the whole process over the next
// WINDOW, prints {"name","messages","cpu_ns_per_message","msgs_per_s"} and ends. `count` keeps its counts in a store
// with a changelog and sends nothing to OUTPUT.

import com.sun.management.OperatingSystemMXBean;
import java.io.File;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Comparator;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import java.util.stream.Stream;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.state.KeyValueStore;

public final class Peer {
    private static final OperatingSystemMXBean SYSTEM =
        (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    private static final CountDownLatch OVER = new CountDownLatch(1);

    // Touched by the one stream thread only.
    private static long seen;
    private static long cpuAtStart;
    private static long timeAtStart;

    private static void count(String name, long warmUp, long window) {
        seen++;
        if (seen == warmUp) {
            cpuAtStart = SYSTEM.getProcessCpuTime();
            timeAtStart = System.nanoTime();
        } else if (seen == warmUp + window) {
            double cpu = (double) (SYSTEM.getProcessCpuTime() - cpuAtStart) / window;
            double rate = window * 1e9 / (System.nanoTime() - timeAtStart);
            System.out.printf(
                "{\"name\":\"%s\",\"messages\":%d,\"cpu_ns_per_message\":%.1f,\"msgs_per_s\":%.0f}%n",
                name, window, cpu, rate);
            System.out.flush();
            OVER.countDown();
        }
    }

    public static void main(String[] args) throws Exception {
        if (args.length != 6) {
            System.err.println("usage: Peer BOOTSTRAP passthrough|count INPUT OUTPUT WARM-UP WINDOW");
            System.exit(2);
        }
        String mode = args[1];
        String input = args[2];
        String output = args[3];
        long warmUp = Long.parseLong(args[4]);
        long window = Long.parseLong(args[5]);
        Path state = Files.createTempDirectory("kafka-streams-peer");

        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, "peer-" + mode + "-" + System.currentTimeMillis());
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, state.toString());
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1000);
        settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");

        StreamsBuilder builder = new StreamsBuilder();
        KStream<Bytes, byte[]> messages =
            builder.stream(input, Consumed.with(Serdes.Bytes(), Serdes.ByteArray()))
                .peek((key, value) -> count("kafka-streams-" + mode, warmUp, window));
        switch (mode) {
            case "passthrough" -> messages.to(output, Produced.with(Serdes.Bytes(), Serdes.ByteArray()));
            case "count" -> messages.groupByKey(Grouped.with(Serdes.Bytes(), Serdes.ByteArray()))
                .count(Materialized.<Bytes, Long, KeyValueStore<Bytes, byte[]>>as("counts")
                    .withKeySerde(Serdes.Bytes()).withValueSerde(Serdes.Long()));
            default -> throw new IllegalArgumentException("unknown mode " + mode);
        }
        KafkaStreams streams = new KafkaStreams(builder.build(), settings);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
        OVER.await();
        streams.close();
        try (Stream<Path> left = Files.walk(state)) {
            left.sorted(Comparator.reverseOrder()).map(Path::toFile).forEach(File::delete);
        }
    }
}
