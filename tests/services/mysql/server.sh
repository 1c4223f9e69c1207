# shellcheck shell=bash
# MariaDB in MySQL's place (Debian's package), TLS where a certificate can be made, and a replica.
# User and password `quikflow` may do everything in databases that are named quikflow...; `reader` may
# only read; root signs in without a password over DIR/mysql.sock.

install_mysql() { apt_get mariadbd mariadb-server mariadb-client; }

# mariadb_server NAME ID [OPTION...]
mariadb_server() {
  local name=$1 id=$2 user=() tls=()
  shift 2
  [[ $(id -u) != 0 ]] || user=(--user=root)
  if certificate; then
    tls=(--ssl-cert="$DIR/tls/server.pem" --ssl-key="$DIR/tls/server.key" --ssl-ca="$DIR/tls/ca.pem")
  fi
  if ! running "$name"; then
    if [[ ! -e $DIR/$name/made ]]; then
      rm -rf "${DIR:?}/$name"
      mkdir -p "$DIR/$name"
      mariadb-install-db --no-defaults "${user[@]}" --datadir="$DIR/$name/data" --skip-test-db \
        --auth-root-authentication-method=normal >"$DIR/$name.log" 2>&1 ||
        { tail -n 5 "$DIR/$name.log" >&2; say "$name: its data folder cannot be made"; exit 1; }
      touch "$DIR/$name/made"
    fi
    launch "$name" mariadbd --no-defaults "${user[@]}" --datadir="$DIR/$name/data" --bind-address=127.0.0.1 \
      --port="$(port_of "$name")" --socket="$DIR/$name.sock" --pid-file="$DIR/$name/own.pid" --skip-name-resolve \
      --server-id="$id" --log-bin=binlog --binlog-format=ROW --log-slave-updates --gtid-strict-mode=1 \
      --relay-log=relay --relay-log-recovery=1 --character-set-server=utf8mb4 --innodb-buffer-pool-size=128M \
      --innodb-log-file-size=64M --performance-schema=OFF --max-connections=200 "${tls[@]}" "$@"
  fi
  until_ready "$name" mariadb-admin --no-defaults --socket="$DIR/$name.sock" --user=root ping
}

mysql_root() { mariadb --no-defaults --socket="$DIR/$1.sock" --user=root --execute="$2"; }

replica_follows() {
  local said
  said=$(mysql_root mysql-replica 'SHOW SLAVE STATUS\G')
  grep -q 'Slave_IO_Running: Yes' <<<"$said" && grep -q 'Slave_SQL_Running: Yes' <<<"$said"
}

start_mysql() {
  if [[ $1 == mysql ]]; then
    mariadb_server mysql 1
    mysql_root mysql "
      CREATE DATABASE IF NOT EXISTS quikflow CHARACTER SET utf8mb4;
      CREATE USER IF NOT EXISTS quikflow@'127.0.0.1' IDENTIFIED BY 'quikflow';
      GRANT ALL ON \`quikflow%\`.* TO quikflow@'127.0.0.1';
      GRANT REPLICATION SLAVE ON *.* TO quikflow@'127.0.0.1';
      CREATE USER IF NOT EXISTS reader@'127.0.0.1' IDENTIFIED BY 'reader';
      GRANT SELECT ON \`quikflow%\`.* TO reader@'127.0.0.1';"
  fi
  # It applies one by one what the primary commits in groups, so it must not sync each.
  mariadb_server mysql-replica 2 --read-only=1 --sync-binlog=0 --innodb-flush-log-at-trx-commit=2
  if ! mysql_root mysql-replica 'SHOW SLAVE STATUS\G' | grep -q "Master_Port: $(port_of mysql)\$"; then
    mysql_root mysql-replica "STOP SLAVE; CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=$(port_of mysql),
      MASTER_USER='quikflow', MASTER_PASSWORD='quikflow', MASTER_CONNECT_RETRY=1, MASTER_USE_GTID=slave_pos;"
  fi
  mysql_root mysql-replica 'START SLAVE' 2>/dev/null || true
  until_ready mysql-replica replica_follows
}

env_mysql() {
  echo "export QUIKFLOW_TEST_MYSQL=mysql://quikflow:quikflow@127.0.0.1:$(port_of mysql)"
  echo "export QUIKFLOW_TEST_MYSQL_READER=mysql://reader:reader@127.0.0.1:$(port_of mysql)"
  if running mysql-replica; then
    echo "export QUIKFLOW_TEST_MYSQL_REPLICA=mysql://quikflow:quikflow@127.0.0.1:$(port_of mysql-replica)"
  fi
  if [[ -s $DIR/tls/ca.pem ]]; then echo "export QUIKFLOW_TEST_CA=$DIR/tls/ca.pem"; fi
}
