# shellcheck shell=bash
# ClickHouse's engine as a library (chdb-core) behind front.py, which speaks the HTTP interface.

install_clickhouse() { make_python_env clickhouse "$HERE/clickhouse/packages.txt" --no-deps; }

start_clickhouse() {
  local port env
  port=$(port_of clickhouse) env=$(python_env clickhouse "$HERE/clickhouse/packages.txt")
  running clickhouse || launch clickhouse "$env/bin/python" "$HERE/clickhouse/front.py" "$DIR/clickhouse/data" "$port"
  until_ready clickhouse listens "$port"
}

env_clickhouse() { echo "export QUIKFLOW_TEST_CLICKHOUSE=http://127.0.0.1:$(port_of clickhouse)"; }
