#!/bin/sh
# Makes the secrets of compose.yaml, one file each: random passwords, the URLs that hold them, and a key.
# What is there already stays. Usage: deploy/secrets.sh [DIR]
set -eu
dir=${1:-$(dirname "$0")/secrets}
umask 022
mkdir -p "$dir"
# Containers read the files under users of their own, so the files are readable and the folder is not.
chmod 700 "$dir"

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
# keep NAME TEXT: writes a file once.
keep() { [ -s "$dir/$1" ] || printf '%s\n' "$2" > "$dir/$1"; }
# of NAME: a password made before, or now.
of() { keep "$1" "$(random)"; cat "$dir/$1"; }

keep token "$(random)"
# What access tokens are signed with, in every process.
[ -s "$dir/jwt_key" ] || command -v openssl >/dev/null || { echo "openssl is missing: install it, or put an RSA private key (PEM) into $dir/jwt_key" >&2; exit 1; }
[ -s "$dir/jwt_key" ] || { key=$(openssl genrsa 2048 2>/dev/null); keep jwt_key "$key"; }
keep mongodb_url "mongodb://quikflow:$(of mongodb_password)@mongodb:27017/quikflow?authSource=admin"
keep elasticsearch_url "http://elastic:$(of elasticsearch_password)@elasticsearch:9200"
keep clickhouse_url "http://quikflow:$(of clickhouse_password)@clickhouse:8123/quikflow"
keep mysql_url "mysql://quikflow:$(of mysql_password)@mysql:3306/quikflow"
# Redis reads its password from a configuration file.
keep redis_conf "requirepass $(random)"
keep redis_url "redis://:$(sed -n 's/^requirepass //p' "$dir/redis_conf")@redis:6379/0"
echo "secrets are in $dir"
