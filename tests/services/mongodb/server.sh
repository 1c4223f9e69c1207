# shellcheck shell=bash
# SecantusDB: a server of MongoDB's protocol on MongoDB's storage engine; not mongod, which no package
# index carries. It acknowledges a majority write before it is in its journal, so every commit is synced.

install_mongodb() { make_python_env mongodb "$HERE/mongodb/packages.txt"; }

start_mongodb() {
  local port env
  port=$(port_of mongodb) env=$(python_env mongodb "$HERE/mongodb/packages.txt")
  running mongodb || launch mongodb "$env/bin/secantusd-py" --host 127.0.0.1 --port "$port" \
    --storage-path "$DIR/mongodb/data" --cache-size 256M --sync-on-commit
  until_ready mongodb listens "$port"
  until_ready mongodb "$env/bin/python" -c '
import sys, pymongo
pymongo.MongoClient("127.0.0.1", int(sys.argv[1]), directConnection=True, serverSelectionTimeoutMS=3000).admin.command("ping")
' "$port"
}

env_mongodb() {
  echo "export QUIKFLOW_TEST_MONGODB='mongodb://127.0.0.1:$(port_of mongodb)/?directConnection=true'"
  # With it tests start servers of their own: with users, with TLS, and told to fail.
  echo "export QUIKFLOW_TEST_MONGODB_PROGRAM=$(python_env mongodb "$HERE/mongodb/packages.txt")/bin/secantusd-py"
  if certificate; then echo "export QUIKFLOW_TEST_CA=$DIR/tls/ca.pem"; fi
}
