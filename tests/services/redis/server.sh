# shellcheck shell=bash
# Redis from Debian's package: an append-only file, synced each second; a second port with TLS.

install_redis() { apt_get redis-server redis-server redis-tools; }

start_redis() {
  local port tls=()
  port=$(port_of redis)
  if certificate; then
    tls=(--tls-port "$(port_of redis-tls)" --tls-cert-file "$DIR/tls/server.pem" --tls-key-file "$DIR/tls/server.key"
      --tls-ca-cert-file "$DIR/tls/ca.pem" --tls-auth-clients no)
  fi
  running redis || launch redis redis-server --bind 127.0.0.1 --port "$port" --dir "$DIR/redis" --daemonize no --save '' \
    --appendonly yes --appendfsync everysec --maxmemory 1gb --maxmemory-policy noeviction "${tls[@]}"
  until_ready redis redis_answers "$port"
}

redis_answers() { [[ $(redis-cli -h 127.0.0.1 -p "$1" ping) == PONG ]]; }

env_redis() {
  echo "export QUIKFLOW_TEST_REDIS=redis://127.0.0.1:$(port_of redis)"
  if [[ -s $DIR/tls/ca.pem ]]; then
    echo "export QUIKFLOW_TEST_REDIS_TLS=rediss://127.0.0.1:$(port_of redis-tls)"
    echo "export QUIKFLOW_TEST_CA=$DIR/tls/ca.pem"
  fi
}
