# shellcheck shell=bash
# One Elasticsearch node from its Maven artifacts, without scripts, security and the other modules that
# no package carries.

elasticsearch_home() { echo "$CACHE/elasticsearch-$(digest "$HERE"/elasticsearch/*)"; }

install_elasticsearch() {
  local home tools module
  home=$(elasticsearch_home)
  [[ ! -e $home/complete ]] || return 0
  need_java
  tools=$(java_home)
  command -v "${tools}javac" >/dev/null || cannot "there is no javac (a JDK is needed)"
  command -v curl >/dev/null || apt_get curl curl
  rm -rf "$home"
  jars "$HERE/elasticsearch/pom.xml" "$home/lib"
  "${tools}javac" --release 17 -proc:none -cp "$home/lib/*" -d "$home/made" "$HERE"/elasticsearch/*.java ||
    cannot "javac fails with this version of the server"
  # A module is a folder with a descriptor; what is in it must not be on the class path too.
  mkdir -p "$home"/modules/{http,welcome} "$home/app/quikflow/tests" "$home/descriptor"
  mv "$home"/made/quikflow/tests/TestNode*.class "$home/app/quikflow/tests/"
  "${tools}jar" --create --file "$home/modules/welcome/welcome.jar" -C "$home/made" quikflow
  (cd "$home/descriptor" && "${tools}jar" --extract --file "$home"/lib/transport-netty4-*.jar META-INF/es-plugins)
  module=$home/descriptor/META-INF/es-plugins/transport-netty4/plugin-descriptor.properties
  sed '/^modulename=/d' "$module" >"$home/modules/http/plugin-descriptor.properties"
  sed -e '/^modulename=/d' -e 's/^name=.*/name=welcome/' -e 's/^classname=.*/classname=quikflow.tests.Welcome/' \
    -e 's/^description=.*/description=the first page/' "$module" >"$home/modules/welcome/plugin-descriptor.properties"
  mv "$home"/lib/{transport-netty4,netty-,elasticsearch-ssl-config}*.jar "$home/modules/http/"
  rm -r "$home/made" "$home/descriptor"
  touch "$home/complete"
}

start_elasticsearch() {
  local port home
  port=$(port_of elasticsearch) home=$(elasticsearch_home)
  if ! running elasticsearch; then
    mkdir -p "$DIR"/elasticsearch/{config,logs,tmp}
    cat >"$DIR/elasticsearch/config/elasticsearch.yml" <<SETTINGS
cluster.name: quikflow-tests
node.name: test
discovery.type: single-node
network.host: 127.0.0.1
http.port: $port
transport.port: 0
cluster.routing.allocation.disk.threshold_enabled: false
SETTINGS
    printf '%s\n' 'status = error' 'appender.c.type = Console' 'appender.c.name = c' 'appender.c.layout.type = PatternLayout' \
      'appender.c.layout.pattern = %d %p %m (%c{1})%n' 'rootLogger.level = info' 'rootLogger.appenderRef.c.ref = c' \
      >"$DIR/elasticsearch/config/log4j2.properties"
    launch elasticsearch "$(java_home)java" -Xms256m "-Xmx${ELASTICSEARCH_HEAP:-768m}" -XX:+UseG1GC -XX:G1ReservePercent=25 \
      -XX:InitiatingHeapOccupancyPercent=30 -XX:TieredStopAtLevel="${ELASTICSEARCH_JIT:-1}" -XX:+ExitOnOutOfMemoryError \
      -Djava.awt.headless=true -Dfile.encoding=UTF-8 -Dio.netty.noUnsafe=true -Dlog4j.shutdownHookEnabled=false \
      -Dlog4j2.disable.jmx=true -Djna.nosys=true -Djava.io.tmpdir="$DIR/elasticsearch/tmp" -cp "$home/app:$home/lib/*" \
      quikflow.tests.TestNode "$DIR/elasticsearch" "$home/modules"
  fi
  until_ready elasticsearch curl --fail --silent --max-time 5 \
    "http://127.0.0.1:$port/_cluster/health?wait_for_status=yellow&timeout=2s"
}

env_elasticsearch() { echo "export QUIKFLOW_TEST_ELASTICSEARCH=http://127.0.0.1:$(port_of elasticsearch)"; }
