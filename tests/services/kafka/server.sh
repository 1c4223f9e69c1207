# shellcheck shell=bash
# One Kafka broker that is its own controller, from its Maven artifacts.
# A second listener wants TLS and a login: quikflow may do everything, clerk what a test allows, stranger nothing;
# the password is the name. KAFKA_PROPERTIES: further lines of server.properties.

kafka_home() { echo "$CACHE/kafka-$(digest "$HERE/kafka/pom.xml")"; }

install_kafka() {
  local home
  home=$(kafka_home)
  [[ ! -e $home/complete ]] || return 0
  need_java
  rm -rf "$home"
  jars "$HERE/kafka/pom.xml" "$home/lib"
  touch "$home/complete"
}

# Another client, in Python; who cannot have it does without.
install_kafka_client() { make_python_env kafka "$HERE/kafka/packages.txt" --only-binary :all:; }

kafka_settings() {
  local port=$1 guarded= map=
  if certificate; then
    guarded=,GUARDED://127.0.0.1:$(port_of kafka-guarded) map=,GUARDED:SASL_SSL
    cat "$DIR/tls/server.key" "$DIR/tls/server.pem" >"$DIR/kafka/server.pem"
    cat <<SETTINGS
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.guarded.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
  user_quikflow="quikflow" user_clerk="clerk" user_stranger="stranger";
listener.name.guarded.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.guarded.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.guarded.ssl.keystore.type=PEM
listener.name.guarded.ssl.keystore.location=$DIR/kafka/server.pem
SETTINGS
  fi
  cat <<SETTINGS
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS;User:quikflow
inter.broker.listener.name=PLAINTEXT
node.id=1
process.roles=broker,controller
controller.quorum.voters=1@127.0.0.1:$(port_of kafka-controller)
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$port$guarded,CONTROLLER://127.0.0.1:$(port_of kafka-controller)
advertised.listeners=PLAINTEXT://127.0.0.1:$port$guarded
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT$map
log.dirs=$DIR/kafka/data
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=1
group.initial.rebalance.delay.ms=0
# one that was killed may come back at once, not when its session has ended
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
${KAFKA_PROPERTIES:-}
SETTINGS
}

start_kafka() {
  local port java lib quiet=()
  port=$(port_of kafka) java=$(java_home)java lib=$(kafka_home)/lib
  if ! running kafka; then
    mkdir -p "$DIR/kafka"
    kafka_settings "$port" >"$DIR/kafka/server.properties"
    printf '%s\n' 'status = error' 'appender.c.type = Console' 'appender.c.name = c' 'appender.c.layout.type = PatternLayout' \
      'appender.c.layout.pattern = %d %p %m (%c{1})%n' 'rootLogger.level = info' 'rootLogger.appenderRef.c.ref = c' \
      >"$DIR/kafka/log4j2.properties"
    quiet=(-XX:+UseSerialGC -XX:TieredStopAtLevel="${KAFKA_JIT:-1}" -Dlog4j2.configurationFile="$DIR/kafka/log4j2.properties" -cp "$lib/*")
    if [[ ! -e $DIR/kafka/data/meta.properties ]]; then
      "$java" "${quiet[@]}" kafka.tools.StorageTool format --cluster-id quikflow-tests-cluster --config "$DIR/kafka/server.properties" \
        --add-scram 'SCRAM-SHA-256=[name=quikflow,password=quikflow]' --add-scram 'SCRAM-SHA-512=[name=quikflow,password=quikflow]' \
        >"$DIR/kafka.format.log" 2>&1 || { tail -n 5 "$DIR/kafka.format.log" >&2; say "kafka: its data folder cannot be made"; exit 1; }
    fi
    launch kafka "$java" -Xms64m "-Xmx${KAFKA_HEAP:-512m}" -XX:+ExitOnOutOfMemoryError -Djava.awt.headless=true "${quiet[@]}" \
      kafka.Kafka "$DIR/kafka/server.properties"
  fi
  until_ready kafka kafka_answers "$port"
  (flock -w 900 9 && install_kafka_client) 9>"$CACHE/.kafka-client.lock" >"$DIR/kafka-client.install.log" 2>&1 &
  wait $! || say "no confluent-kafka for Python because $(tail -n 1 "$DIR/kafka-client.install.log")"
}

kafka_answers() { listens "$1" && grep -q 'Kafka Server started' "$DIR/kafka.log"; }

env_kafka() {
  local client
  client=$(python_env kafka "$HERE/kafka/packages.txt")
  echo "export QUIKFLOW_TEST_KAFKA=127.0.0.1:$(port_of kafka)"
  if [[ -e $DIR/kafka/server.pem ]]; then
    echo "export QUIKFLOW_TEST_KAFKA_GUARDED=127.0.0.1:$(port_of kafka-guarded)"
    echo "export QUIKFLOW_TEST_CA=$DIR/tls/ca.pem"
  fi
  if [[ -e $client/complete ]]; then echo "export QUIKFLOW_TEST_PYTHON=$client/bin/python"; fi
}
