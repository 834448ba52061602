// Kafka Streams with its default settings and one stream thread, measured over a window of messages: the peer of the
// benches.
//
// usage: Peer BOOTSTRAP, then one run a line on stdin:
//   MODE APPLICATION INPUT OUTPUT EXACTLY-ONCE COMMIT-MS CHANGELOG WARM-UP WINDOW
// A run reads INPUT from its beginning, lets WARM-UP messages pass, measures the CPU of the whole process over the next
// WINDOW, prints {"messages","cpu_ns_per_message","msgs_per_s"} and ends; the next finds a warm JVM. MODE is
//   consume      nothing is done
//   passthrough  each message goes to OUTPUT
//   filter       those whose key ends with 0 do
//   count        keys are counted in a store, nothing is sent
//   forward      both; the run ends with the next line on stdin, nothing is measured
//   restore      the store is restored from a changelog that is there already and has WINDOW rows; they are measured

import com.sun.management.OperatingSystemMXBean;
import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStreamReader;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Comparator;
import java.util.Properties;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.stream.Stream;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.TopicPartition;
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
import org.apache.kafka.streams.processor.StateRestoreListener;
import org.apache.kafka.streams.processor.api.ContextualFixedKeyProcessor;
import org.apache.kafka.streams.processor.api.FixedKeyProcessorContext;
import org.apache.kafka.streams.processor.api.FixedKeyRecord;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.Stores;

public final class Peer implements StateRestoreListener {
    private static final String NO_MORE = "";
    private static final OperatingSystemMXBean SYSTEM =
        (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();

    private final String mode;
    private final String application;
    private final String input;
    private final String output;
    private final boolean exactlyOnce;
    private final int commitMs;
    private final boolean changelog;
    private final long warmUp;
    private final long window;
    private final CountDownLatch over = new CountDownLatch(1);

    // Touched by one thread only, the stream thread or the one that restores.
    private long seen;
    private long cpuAtStart;
    private long timeAtStart;
    private boolean restoring;

    private Peer(String[] words) {
        mode = words[0];
        application = words[1];
        input = words[2];
        output = words[3];
        exactlyOnce = Boolean.parseBoolean(words[4]);
        commitMs = Integer.parseInt(words[5]);
        changelog = Boolean.parseBoolean(words[6]);
        warmUp = Long.parseLong(words[7]);
        window = Long.parseLong(words[8]);
    }

    private void start() {
        cpuAtStart = SYSTEM.getProcessCpuTime();
        timeAtStart = System.nanoTime();
    }

    private void print(long messages) {
        double cpu = (double) (SYSTEM.getProcessCpuTime() - cpuAtStart) / messages;
        double rate = messages * 1e9 / (System.nanoTime() - timeAtStart);
        System.out.printf(
            "{\"messages\":%d,\"cpu_ns_per_message\":%.1f,\"msgs_per_s\":%.0f}%n", messages, cpu, rate);
        System.out.flush();
    }

    private void count() {
        seen++;
        if (seen == warmUp) {
            start();
        } else if (seen == warmUp + window && !mode.equals("forward")) {
            over.countDown();
            print(window);
        }
    }

    // Partitions are restored side by side: measured from the beginning of the first to the end of the last.
    @Override
    public synchronized void onRestoreStart(TopicPartition partition, String store, long from, long to) {
        if (!restoring) {
            restoring = true;
            start();
        }
    }

    @Override
    public void onBatchRestored(TopicPartition partition, String store, long end, long rows) {
    }

    @Override
    public synchronized void onRestoreEnd(TopicPartition partition, String store, long rows) {
        seen += rows;
        if (seen == window) {
            print(seen);
            over.countDown();
        }
    }

    // Counts each message's key and sends the message on.
    private static final class Forward extends ContextualFixedKeyProcessor<Bytes, byte[], byte[]> {
        private KeyValueStore<Bytes, Long> counts;

        @Override
        public void init(FixedKeyProcessorContext<Bytes, byte[]> context) {
            super.init(context);
            counts = context.getStateStore("counts");
        }

        @Override
        public void process(FixedKeyRecord<Bytes, byte[]> message) {
            Long count = counts.get(message.key());
            counts.put(message.key(), count == null ? 1 : count + 1);
            context().forward(message);
        }
    }

    private StreamsBuilder topology() {
        StreamsBuilder builder = new StreamsBuilder();
        KStream<Bytes, byte[]> messages =
            builder.stream(input, Consumed.with(Serdes.Bytes(), Serdes.ByteArray()));
        Produced<Bytes, byte[]> produced = Produced.with(Serdes.Bytes(), Serdes.ByteArray());
        KStream<Bytes, byte[]> seen = messages.peek((key, value) -> count());
        switch (mode) {
            case "consume" -> { }
            case "passthrough" -> seen.to(output, produced);
            case "filter" -> seen.filter((key, value) -> key.get()[key.get().length - 1] == '0')
                .to(output, produced);
            case "count", "restore" -> {
                Materialized<Bytes, Long, KeyValueStore<Bytes, byte[]>> counts =
                    Materialized.<Bytes, Long, KeyValueStore<Bytes, byte[]>>as("counts")
                        .withKeySerde(Serdes.Bytes()).withValueSerde(Serdes.Long());
                seen.groupByKey(Grouped.with(Serdes.Bytes(), Serdes.ByteArray()))
                    .count(changelog ? counts : counts.withLoggingDisabled());
            }
            case "forward" -> {
                builder.addStateStore(Stores.keyValueStoreBuilder(
                    Stores.persistentKeyValueStore("counts"), Serdes.Bytes(), Serdes.Long()).withCachingEnabled());
                seen.processValues(Forward::new, "counts").to(output, produced);
            }
            default -> throw new IllegalArgumentException("unknown mode " + mode);
        }
        return builder;
    }

    private void run(String bootstrap, BlockingQueue<String> orders) throws Exception {
        Path state = Files.createTempDirectory("kafka-streams-peer");
        Properties settings = new Properties();
        settings.put(StreamsConfig.APPLICATION_ID_CONFIG, application);
        settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        settings.put(StreamsConfig.STATE_DIR_CONFIG, state.toString());
        settings.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, commitMs);
        settings.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        if (exactlyOnce) {
            settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
        }
        if (mode.equals("restore")) {
            // The application before, of the same name, is forgotten soon.
            settings.put(ConsumerConfig.SESSION_TIMEOUT_MS_CONFIG, 6000);
        }
        if (mode.equals("forward")) {
            // Where latency is measured both sides wait as long for more to send.
            settings.put(StreamsConfig.producerPrefix(ProducerConfig.LINGER_MS_CONFIG), 5);
        }
        KafkaStreams streams = new KafkaStreams(topology().build(), settings);
        if (mode.equals("restore")) {
            streams.setGlobalStateRestoreListener(this);
        }
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            Runtime.getRuntime().halt(1);
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        streams.start();
        if (mode.equals("forward")) {
            orders.take();
        } else {
            over.await();
        }
        streams.close(Duration.ofSeconds(30));
        try (Stream<Path> left = Files.walk(state)) {
            left.sorted(Comparator.reverseOrder()).map(Path::toFile).forEach(File::delete);
        }
    }

    public static void main(String[] args) throws Exception {
        if (args.length != 1) {
            System.err.println("usage: Peer BOOTSTRAP, with runs on stdin");
            System.exit(2);
        }
        BlockingQueue<String> orders = new LinkedBlockingQueue<>();
        Thread reader = new Thread(() -> read(orders));
        reader.setDaemon(true);
        reader.start();
        for (String line = orders.take(); !line.equals(NO_MORE); line = orders.take()) {
            new Peer(line.split(" ")).run(args[0], orders);
        }
    }

    // Who gives orders may die in the middle of a run, and the brokers with it.
    private static void read(BlockingQueue<String> orders) {
        try (BufferedReader lines = new BufferedReader(new InputStreamReader(System.in))) {
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                orders.add(line);
            }
            orders.add(NO_MORE);
            Thread.sleep(30_000);
        } catch (IOException | InterruptedException error) {
            error.printStackTrace();
        }
        Runtime.getRuntime().halt(1);
    }
}
