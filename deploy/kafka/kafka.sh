#!/usr/bin/env bash
# Apache Kafka from Maven, at the version that pom.xml pins, in KRaft mode, on one machine.
#
#   deploy/kafka/kafka.sh fetch                       get the jars into the cache, once per machine and version
#   deploy/kafka/kafka.sh start --data DIR [options]  start brokers and wait until all of them answer
#     --brokers N        1 (default) or 3
#     --hosts A,B,C      where broker i listens; default 127.0.0.1,127.0.0.2,127.0.0.3
#     --advertise A,B,C  where clients and brokers are told to find broker i, if not where it listens; a proxy must be there
#     --port P           the brokers' port, default 9092 (controllers: P+1); 0 picks a free pair
#   deploy/kafka/kafka.sh stop --data DIR             stop them, by pid
#   deploy/kafka/kafka.sh kill --data DIR --id I      SIGKILL broker I
#   deploy/kafka/kafka.sh start --data DIR            start again what is not running of a DIR used before
#   deploy/kafka/kafka.sh run [options] -- COMMAND    brokers in a temporary folder around COMMAND, which finds them in
#                                                     SAMZA_TEST_KAFKA (bootstrap) and SAMZA_TEST_KAFKA_DATA (DIR)
#   deploy/kafka/kafka.sh tool CLASS ARGS             one of Kafka's own tools, e.g. org.apache.kafka.tools.TopicCommand
#
# `start` leaves in DIR: bootstrap (host:port,...), kI.pid, kI.log, kI.properties and kI, the data of broker I.
# Broker I has rack rI. With three brokers every topic has three replicas and min.insync.replicas=2 by default.
#   KAFKA_HEAP   heap of a broker, default 384m
#   KAFKA_JVM    JVM flags; the default starts quickly and stays small at the price of peak throughput, so benches
#                set their own, e.g. KAFKA_JVM=-XX:+UseG1GC
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
version=$(sed -n 's:.*<kafka.version>\(.*\)</kafka.version>.*:\1:p' "$here/pom.xml")
cache=${SAMZA_CACHE:-$HOME/.cache/samza-rs}/kafka
lib=$cache/$version/lib

die() { echo "kafka.sh: $*" >&2; exit 1; }
usage() { sed -n '2,/^set -e/p' "$0" | sed -e '/^set -e/d' -e 's/^# \{0,1\}//'; }

fetch() {
  [ -f "$cache/$version/complete" ] && return 0
  "$here/../install-packages.sh" kafka >&2
  mkdir -p "$cache/$version"
  exec 9>"$cache/lock"
  flock 9                                   # two fetches at once: the second waits and finds it done
  if [ ! -f "$cache/$version/complete" ]; then
    echo "kafka: fetching Apache Kafka $version with Maven into $lib (about a minute)" >&2
    mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$lib" >&2
    touch "$cache/$version/complete"
  fi
  exec 9>&-
}

# A free pair of ports (brokers, controllers) on all of the hosts, below the range of outgoing connections.
free_port() {
  python3 - "$@" <<'PY'
import random, socket, sys
for _ in range(200):
    port, held = random.randrange(20000, 29998, 2), []
    try:
        for host in sys.argv[1:]:
            for p in (port, port + 1):
                held.append(socket.socket())
                held[-1].bind((host, p))
        print(port)
        break
    except OSError:
        pass
    finally:
        for s in held:
            s.close()
else:
    sys.exit("no free pair of ports")
PY
}

# Waits until each broker lists all of them in its metadata; fails at the deadline or when one has died.
await_answers() {
  python3 - "$data" "${hosts[*]}" "$port" <<'PY'
import os, socket, struct, sys, time
data, hosts, port = sys.argv[1], sys.argv[2].split(), int(sys.argv[3])

def brokers_known_to(host):
    with socket.create_connection((host, port), timeout=2) as s:
        s.settimeout(2)
        body = struct.pack(">hhih2si", 3, 1, 7, 2, b"sh", 0)        # Metadata v1, no topics
        s.sendall(struct.pack(">i", len(body)) + body)
        size, = struct.unpack(">i", s.recv(4, socket.MSG_WAITALL))
        reply = s.recv(size, socket.MSG_WAITALL)
        return struct.unpack(">i", reply[4:8])[0]

deadline = time.monotonic() + 60
for number, host in enumerate(hosts, 1):
    while True:
        try:
            if brokers_known_to(host) == len(hosts):
                break
        except (OSError, struct.error):
            pass
        pid = int(open(f"{data}/k{number}.pid").read())
        try:
            os.kill(pid, 0)
        except OSError:
            sys.exit(f"kafka.sh: broker {number} ended while it started; see {data}/k{number}.log")
        if time.monotonic() > deadline:
            sys.exit(f"kafka.sh: broker {number} on {host}:{port} does not answer; see {data}/k{number}.log")
        time.sleep(0.05)
PY
}

properties() { # broker id
  local host=${hosts[$(($1 - 1))]} found=${advertised[$(($1 - 1))]} replication=1 min_isr=1 voters="" i
  [ "$brokers" = 3 ] && { replication=3; min_isr=2; }
  for i in $(seq "$brokers"); do voters="$voters${voters:+,}$i@${hosts[$((i - 1))]}:$((port + 1))"; done
  cat <<PROPERTIES
process.roles=broker,controller
node.id=$1
broker.rack=r$1
replica.selector.class=org.apache.kafka.common.replica.RackAwareReplicaSelector
controller.quorum.voters=$voters
listeners=PLAINTEXT://$host:$port,CONTROLLER://$host:$((port + 1))
advertised.listeners=PLAINTEXT://$found:$port
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
log.dirs=$data/k$1
default.replication.factor=$replication
min.insync.replicas=$min_isr
offsets.topic.replication.factor=$replication
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=$replication
transaction.state.log.min.isr=$min_isr
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=$replication
share.coordinator.state.topic.min.isr=$min_isr
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
PROPERTIES
}

running() { # broker id: whether its process is alive and is that broker
  local pid
  pid=$(cat "$data/k$1.pid" 2>/dev/null) || return 1
  tr '\0' ' ' 2>/dev/null < "/proc/$pid/cmdline" | grep -q -F "$data/k$1.properties"
}

# Formats broker 1 and gives the others the same with their own number; they draw a directory id when they start.
format() {
  [ -f "$data/k$brokers/meta.properties" ] && return 0
  local cluster id
  cluster=$(python3 -c 'import base64, os; print(base64.urlsafe_b64encode(b"\x01" + os.urandom(15)).decode().rstrip("="))')
  java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$lib/*" \
    kafka.tools.StorageTool format -t "$cluster" -c "$data/k1.properties" > "$data/format.log" 2>&1 ||
    { cat "$data/format.log" >&2; die "cannot format $data"; }
  for id in $(seq 2 "$brokers"); do
    mkdir -p "$data/k$id"
    cp "$data/k1/bootstrap.checkpoint" "$data/k$id/"
    sed -e "s/^node.id=.*/node.id=$id/" -e /^directory.id=/d "$data/k1/meta.properties" > "$data/k$id/meta.properties"
  done
}

start() {
  fetch
  mkdir -p "$data"; data=$(cd "$data" && pwd)
  if [ -f "$data/settings" ]; then
    read -r brokers host_list port advertise < "$data/settings"
  fi
  case $brokers in 1|3) ;; *) die "--brokers is 1 or 3" ;; esac
  IFS=, read -r -a hosts <<< "$host_list"
  hosts=("${hosts[@]:0:$brokers}")
  [ "${#hosts[@]}" = "$brokers" ] || die "--hosts names fewer than $brokers hosts"
  IFS=, read -r -a advertised <<< "${advertise:-$host_list}"
  advertised=("${advertised[@]:0:$brokers}")
  [ "${#advertised[@]}" = "$brokers" ] || die "--advertise names fewer than $brokers hosts"
  [ "$port" != 0 ] || port=$(free_port $(printf '%s\n' "${hosts[@]}" "${advertised[@]}" | sort -u))
  echo "$brokers $host_list $port $advertise" > "$data/settings"

  local id flags
  for id in $(seq "$brokers"); do properties "$id" > "$data/k$id.properties"; done
  format
  flags="${KAFKA_JVM:--XX:TieredStopAtLevel=1 -XX:+UseSerialGC} -XX:-UsePerfData -Xms64m -Xmx${KAFKA_HEAP:-384m}"
  for id in $(seq "$brokers"); do
    if running "$id"; then continue; fi
    # shellcheck disable=SC2086  # flags are words on purpose
    setsid java $flags -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$lib/*" kafka.Kafka \
      "$data/k$id.properties" >> "$data/k$id.log" 2>&1 < /dev/null &
    echo $! > "$data/k$id.pid"
    disown   # its end is not this shell's to report
  done
  await_answers || { stop; exit 1; }
  local bootstrap="${advertised[*]/%/:$port}"
  echo "${bootstrap// /,}" | tee "$data/bootstrap.part"
  mv "$data/bootstrap.part" "$data/bootstrap"
}

stop() {
  data=$(cd "$data" 2>/dev/null && pwd) || return 0
  local id
  rm -f "$data/bootstrap"
  # All at once and without a controlled shutdown: with the whole cluster going, there is nobody to hand leaders to.
  for id in 1 2 3; do if running "$id"; then kill -KILL "$(cat "$data/k$id.pid")"; fi; done
  for id in 1 2 3; do
    while running "$id"; do sleep 0.02; done
    rm -f "$data/k$id.pid"
  done
}

run() {
  data=$(mktemp -d "${TMPDIR:-/tmp}/samza-kafka.XXXXXX")
  trap 'stop; rm -rf "$data"' EXIT
  start > "$data/started" || exit 1
  SAMZA_TEST_KAFKA=$(cat "$data/bootstrap") SAMZA_TEST_KAFKA_DATA=$data "$@"
}

command=${1:-}; shift || true
if [ "$command" = tool ]; then
  fetch
  exec java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$lib/*" "$@"
fi
data="" brokers=1 host_list=127.0.0.1,127.0.0.2,127.0.0.3 port=9092 broker="" advertise=""
while [ $# -gt 0 ]; do
  case $1 in
    --data) data=${2:?--data needs a folder}; shift 2 ;;
    --brokers) brokers=${2:?}; shift 2 ;;
    --hosts) host_list=${2:?}; shift 2 ;;
    --advertise) advertise=${2:?}; shift 2 ;;
    --port) port=${2:?}; shift 2 ;;
    --) shift; break ;;
    --id) broker=${2:?}; shift 2 ;;
    *) usage >&2; die "unknown option $1" ;;
  esac
done
case $command in
  fetch) fetch ;;
  start|stop|kill) [ -n "$data" ] || die "$command needs --data DIR" ;;&
  start) start ;;
  stop) stop ;;
  run) [ $# -gt 0 ] || die "run needs a command after --"; run "$@" ;;
  kill) data=$(cd "$data" && pwd)
        running "${broker:?kill needs --id}" || die "broker $broker is not running"
        kill -KILL "$(cat "$data/k$broker.pid")" ;;
  -h|--help|help) usage ;;
  *) usage >&2; exit 2 ;;
esac
