#!/usr/bin/env bash
# Apache Kafka from Maven, at the version that pom.xml pins, in KRaft mode, on one machine.
#
#   deploy/kafka/kafka.sh fetch                       get the jars into the cache, once per machine and version
#   deploy/kafka/kafka.sh start --data DIR [options]  start brokers and wait until all of them answer
#     --brokers N        1 (default) or 3
#     --hosts A,B,C      where broker i listens; default 127.0.0.1,127.0.0.2,127.0.0.3
#     --advertise A,B,C  where clients and brokers are told to find broker i, if not where it listens; a proxy must be there
#     --port P           the brokers' port, default 9092 (controllers: P+1); 0 picks a free pair
#     --set KEY=VALUE    a setting of every broker; may be given several times
#     --secure           one broker that knows its clients: SASL_SSL (SCRAM-SHA-512 and 256, PLAIN, OAUTHBEARER with tokens
#                        that nobody signed) with a CA of its own, and an authorizer that lets nobody do anything but admin
#   deploy/kafka/kafka.sh grant --data DIR USER       of a secured broker: give USER the rights on stdin, one a line:
#                                                     OPERATION topic|group|transactional-id|cluster NAME [prefixed]
#   deploy/kafka/kafka.sh stop --data DIR             stop them, by pid
#   deploy/kafka/kafka.sh kill --data DIR --id I      SIGKILL broker I
#   deploy/kafka/kafka.sh start --data DIR [--id I]   start again what is not running of a DIR used before, or broker I alone
#   deploy/kafka/kafka.sh run [options] -- COMMAND    brokers in a temporary folder around COMMAND, which finds them in
#                                                     SAMZA_TEST_KAFKA (bootstrap) and SAMZA_TEST_KAFKA_DATA (DIR); with
#                                                     --secure in SAMZA_TEST_KAFKA_SECURE and SAMZA_TEST_KAFKA_SECURE_DATA
#   deploy/kafka/kafka.sh tool CLASS ARGS             one of Kafka's own tools, e.g. org.apache.kafka.tools.TopicCommand
#
# `start` leaves in DIR: bootstrap (host:port,...), kI.pid, kI.log, kI.properties and kI, the data of broker I.
# A secured broker's DIR has secure/: ca.pem, the passwords of the users in admin.password and job.password, certificates
# of them in admin.crt and job.crt with their keys in admin.key and job.key, and admin.properties for Kafka's own tools
# (`tool org.apache.kafka.tools.TopicCommand --command-config …`).
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

# The CA, certificates of the broker, of its administrator and of the user job, and the users' passwords.
make_secrets() {
  local dir=$data/secure names="IP:${hosts[0]},DNS:localhost" name
  [ -f "$dir/complete" ] && return 0
  mkdir -p "$dir"; chmod 700 "$dir"
  certificate() { # name, options
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj "/CN=$1" \
      -keyout "$dir/$1.key" -out "$dir/$1.crt" "${@:2}" 2> "$dir/openssl.log" || { cat "$dir/openssl.log" >&2; die "openssl"; }
  }
  certificate ca -addext basicConstraints=critical,CA:TRUE
  mv "$dir/ca.crt" "$dir/ca.pem"
  for name in broker admin job; do
    certificate "$name" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" -addext "subjectAltName=$names" \
      -addext basicConstraints=CA:FALSE
    cat "$dir/$name.key" "$dir/$name.crt" > "$dir/$name.pem"
  done
  for name in admin job; do openssl rand -hex 16 > "$dir/$name.password"; done
  cat > "$dir/admin.properties" <<PROPERTIES
security.protocol=SASL_SSL
sasl.mechanism=SCRAM-SHA-512
sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required username="admin" password="$(cat "$dir/admin.password")";
ssl.truststore.type=PEM
ssl.truststore.location=$dir/ca.pem
PROPERTIES
  touch "$dir/complete"
}

# What makes a broker's properties those of a secured one.
secure_properties() {
  local dir=$data/secure of=org.apache.kafka.common.security admin job
  admin=$(cat "$dir/admin.password") job=$(cat "$dir/job.password")
  cat <<PROPERTIES
listeners=SECURE://${hosts[0]}:$port,CONTROLLER://${hosts[0]}:$((port + 1))
advertised.listeners=SECURE://${advertised[0]}:$port
listener.security.protocol.map=CONTROLLER:SSL,SECURE:SASL_SSL
inter.broker.listener.name=SECURE
ssl.keystore.type=PEM
ssl.keystore.location=$dir/broker.pem
ssl.truststore.type=PEM
ssl.truststore.location=$dir/ca.pem
listener.name.controller.ssl.client.auth=required
sasl.enabled.mechanisms=SCRAM-SHA-512,SCRAM-SHA-256,PLAIN,OAUTHBEARER
sasl.mechanism.inter.broker.protocol=SCRAM-SHA-512
listener.name.secure.scram-sha-512.sasl.jaas.config=$of.scram.ScramLoginModule required username="admin" password="$admin";
listener.name.secure.scram-sha-256.sasl.jaas.config=$of.scram.ScramLoginModule required;
listener.name.secure.plain.sasl.jaas.config=$of.plain.PlainLoginModule required user_job="$job";
listener.name.secure.oauthbearer.sasl.jaas.config=$of.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
allow.everyone.if.no.acl.found=false
super.users=User:admin;User:CN=broker;User:CN=admin
PROPERTIES
}

# Gives a user rights through the controller, which knows its administrator by a certificate. Kafka's own tool would do,
# at a second for each call.
grant() {
  data=$(cd "$data" && pwd)
  read -r _ host_list port _ < "$data/settings"
  python3 -c '
import socket, ssl, struct, sys
dir, host, port, user = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
kinds = {"topic": 2, "group": 3, "cluster": 4, "transactional-id": 5}
operations = {"All": 2, "Read": 3, "Write": 4, "Create": 5, "Delete": 6, "Alter": 7, "Describe": 8, "ClusterAction": 9,
              "DescribeConfigs": 10, "AlterConfigs": 11, "IdempotentWrite": 12}
def text(value):
    value = value.encode()
    return struct.pack(">h", len(value)) + value
rights = [line.split() for line in sys.stdin if line.strip()]
body = struct.pack(">hhi", 30, 1, 1) + text("kafka.sh") + struct.pack(">i", len(rights))        # CreateAcls v1
for operation, kind, name, *prefixed in rights:
    body += struct.pack(">b", kinds[kind]) + text(name) + struct.pack(">b", 4 if prefixed else 3)
    body += text("User:" + user) + text("*") + struct.pack(">bb", operations[operation], 3)
context = ssl.create_default_context(cafile=dir + "/ca.pem")
context.load_cert_chain(dir + "/admin.pem")
with context.wrap_socket(socket.create_connection((host, port), timeout=20), server_hostname=host) as s:
    s.sendall(struct.pack(">i", len(body)) + body)
    answer = s.makefile("rb")
    size, = struct.unpack(">i", answer.read(4))
    answer = answer.read(size)
    count, = struct.unpack(">i", answer[8:12])
    at = 12
    for right in rights[:count]:
        error, length = struct.unpack(">hh", answer[at:at + 4])
        at += 4 + max(length, 0)
        if error:
            sys.exit(f"kafka.sh: {right}: error {error}: {answer[at - max(length, 0):at].decode()}")
' "$data/secure" "${host_list%%,*}" "$((port + 1))" "$1"
}

# Waits until each broker lists all of them in its metadata; fails at the deadline or when one has died.
await_answers() {
  python3 - "$data" "${hosts[*]}" "$port" "$broker" <<'PY'
import os, socket, ssl, struct, sys, time
data, hosts, port = sys.argv[1], sys.argv[2].split(), int(sys.argv[3])
one = int(sys.argv[4]) if sys.argv[4] else None     # who else is there is not its business then
secured = os.path.exists(data + "/secure/complete")

def brokers_known_to(host):
    with socket.create_connection((host, port), timeout=2) as s:
        s.settimeout(2)
        if secured:         # ApiVersions v0 is all that a client may ask before it says who it is
            context = ssl.create_default_context(cafile=data + "/secure/ca.pem")
            context.load_cert_chain(data + "/secure/admin.pem")     # if it asks for one
            with context.wrap_socket(s, server_hostname=host) as tls:
                body = struct.pack(">hhih2s", 18, 0, 7, 2, b"sh")
                tls.sendall(struct.pack(">i", len(body)) + body)
                return 1 if len(tls.recv(4)) == 4 else 0
        body = struct.pack(">hhih2si", 3, 1, 7, 2, b"sh", 0)        # Metadata v1, no topics
        s.sendall(struct.pack(">i", len(body)) + body)
        size, = struct.unpack(">i", s.recv(4, socket.MSG_WAITALL))
        reply = s.recv(size, socket.MSG_WAITALL)
        return struct.unpack(">i", reply[4:8])[0]

deadline = time.monotonic() + 60
for number, host in enumerate(hosts, 1):
    while one in (None, number):
        try:
            if brokers_known_to(host) >= (1 if one else len(hosts)):
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
  # What is said last counts.
  [ ! -d "$data/secure" ] || secure_properties
  [ ! -f "$data/more.properties" ] || cat "$data/more.properties"
}

running() { # broker id: whether its process is alive and is that broker
  local pid
  pid=$(cat "$data/k$1.pid" 2>/dev/null) || return 1
  tr '\0' ' ' 2>/dev/null < "/proc/$pid/cmdline" | grep -q -F "$data/k$1.properties"
}

# Formats broker 1 and gives the others the same with their own number; they draw a directory id when they start.
format() {
  [ -f "$data/k$brokers/meta.properties" ] && return 0
  local cluster id users=()
  if [ -d "$data/secure" ]; then
    for id in admin job; do
      for cluster in 256 512; do
        users+=(--add-scram "SCRAM-SHA-$cluster=[name=$id,password=$(cat "$data/secure/$id.password")]")
      done
    done
  fi
  cluster=$(python3 -c 'import base64, os; print(base64.urlsafe_b64encode(b"\x01" + os.urandom(15)).decode().rstrip("="))')
  java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=error -cp "$lib/*" \
    kafka.tools.StorageTool format -t "$cluster" "${users[@]}" -c "$data/k1.properties" > "$data/format.log" 2>&1 ||
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
  [ ${#more[@]} = 0 ] || printf '%s\n' "${more[@]}" > "$data/more.properties"
  if [ -n "$secure" ]; then
    [ "$brokers" = 1 ] || die "--secure is for one broker"
    make_secrets
  fi

  local id flags
  for id in $(seq "$brokers"); do properties "$id" > "$data/k$id.properties"; done
  format
  flags="${KAFKA_JVM:--XX:TieredStopAtLevel=1 -XX:+UseSerialGC} -XX:-UsePerfData -Xms64m -Xmx${KAFKA_HEAP:-384m}"
  for id in ${broker:-$(seq "$brokers")}; do
    if running "$id"; then continue; fi
    # shellcheck disable=SC2086  # flags are words on purpose
    setsid java $flags -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$lib/*" kafka.Kafka \
      "$data/k$id.properties" >> "$data/k$id.log" 2>&1 < /dev/null &
    echo $! > "$data/k$id.pid"
    disown   # its end is not this shell's to report
  done
  await_answers || { [ -n "$broker" ] || stop; exit 1; }
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
  if [ -n "$secure" ]; then
    SAMZA_TEST_KAFKA_SECURE=$(cat "$data/bootstrap") SAMZA_TEST_KAFKA_SECURE_DATA=$data "$@"
  else
    SAMZA_TEST_KAFKA=$(cat "$data/bootstrap") SAMZA_TEST_KAFKA_DATA=$data "$@"
  fi
}

command=${1:-}; shift || true
if [ "$command" = tool ]; then
  fetch
  exec java -XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$lib/*" "$@"
fi
data="" brokers=1 host_list=127.0.0.1,127.0.0.2,127.0.0.3 port=9092 broker="" advertise="" secure="" user="" more=()
while [ $# -gt 0 ]; do
  case $1 in
    --data) data=${2:?--data needs a folder}; shift 2 ;;
    --brokers) brokers=${2:?}; shift 2 ;;
    --hosts) host_list=${2:?}; shift 2 ;;
    --advertise) advertise=${2:?}; shift 2 ;;
    --port) port=${2:?}; shift 2 ;;
    --) shift; break ;;
    --set) more+=("${2:?--set needs KEY=VALUE}"); shift 2 ;;
    --secure) secure=yes; shift ;;
    --id) broker=${2:?}; shift 2 ;;
    *) [ "$command" = grant ] && [ -z "$user" ] || { usage >&2; die "unknown option $1"; }
       user=$1; shift ;;
  esac
done
case $command in
  fetch) fetch ;;
  start|stop|kill|grant) [ -n "$data" ] || die "$command needs --data DIR" ;;&
  start) start ;;
  grant) grant "${user:?grant needs a user}" ;;
  stop) stop ;;
  run) [ $# -gt 0 ] || die "run needs a command after --"; run "$@" ;;
  kill) data=$(cd "$data" && pwd)
        running "${broker:?kill needs --id}" || die "broker $broker is not running"
        kill -KILL "$(cat "$data/k$broker.pid")" ;;
  -h|--help|help) usage ;;
  *) usage >&2; exit 2 ;;
esac
