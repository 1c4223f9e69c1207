# shellcheck shell=bash
# What the servers' scripts share; sourced by `services`, which sets DIR, CACHE and WAIT.
#
# A server NAME leaves DIR/NAME (its data), DIR/NAME.log, DIR/NAME.port, DIR/NAME.pid and
# DIR/NAME.born: when that process began, so that a number given away since is not taken for it.

say() { echo "$*" >&2; }

# The last line of an install's log is the reason that people read.
cannot() { echo "$*"; exit 1; }

# apt_get COMMAND PACKAGE...: unless COMMAND is there already. No service is started by it.
apt_get() {
  local command=$1 hold=/usr/sbin/policy-rc.d mine= failed=0
  shift
  command -v "$command" >/dev/null && return 0
  command -v apt-get >/dev/null || cannot "there is no $command, and no apt-get to install it"
  [[ $(id -u) == 0 ]] || cannot "there is no $command, and only root installs packages ($*)"
  [[ -e $hold ]] || { printf '#!/bin/sh\nexit 101\n' >"$hold" && chmod 755 "$hold" && mine=1; }
  local quiet=(env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300)
  "${quiet[@]}" install --no-install-recommends "$@" 9>&- ||
    { "${quiet[@]}" update 9>&- && "${quiet[@]}" install --no-install-recommends "$@" 9>&-; } || failed=1
  [[ -z $mine ]] || rm -f "$hold"
  [[ $failed == 0 ]] || cannot "apt-get install $* failed"
}

# digest FILE...: a short name for what the files say.
digest() { cat "$@" | sha256sum | cut -c1-16; }

# python_env NAME FILE [OPTION...]: the folder of a virtual environment with the packages of FILE.
python_env() { echo "$CACHE/$1-$(digest "$2")"; }
make_python_env() {
  local dir
  dir=$(python_env "$1" "$2")
  [[ ! -e $dir/complete ]] || return 0
  command -v python3 >/dev/null || cannot "there is no python3"
  rm -rf "$dir"
  python3 -m venv "$dir" || cannot "python3 -m venv failed (Debian: python3-venv)"
  "$dir/bin/pip" install --disable-pip-version-check --quiet "${@:3}" --requirement "$2" ||
    cannot "pip installs not all of $(basename "$(dirname "$2")")/$(basename "$2")"
  touch "$dir/complete"
}

java_home() {
  if [[ -n ${JAVA_HOME:-} && -x $JAVA_HOME/bin/java ]]; then echo "$JAVA_HOME/bin/"; fi
}

# need_java: a Java of 17 or later, and mvn; on Debian they are installed.
need_java() {
  local version
  command -v "$(java_home)java" >/dev/null || apt_get java openjdk-17-jdk-headless
  command -v mvn >/dev/null || apt_get mvn maven
  version=$("$(java_home)java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
  [[ ${version:-0} -ge 17 ]] || cannot "java is of version ${version:-unknown}; 17 or later is needed"
}

# jars POM FOLDER: what POM depends on, into FOLDER. mvn finds it where its own settings say.
jars() {
  local attempt
  for attempt in 1 2 3; do
    mvn --batch-mode --quiet --file "$1" dependency:copy-dependencies -DincludeScope=runtime \
      -DoutputDirectory="$2" </dev/null && return 0
    echo "mvn failed, attempt $attempt of 3"
  done
  cannot "mvn does not find what $(basename "$(dirname "$1")")/pom.xml names"
}

born() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | cut -d ' ' -f 20; }
process_state() {
  case $(sed 's/^.*) //' "/proc/$(cat "$DIR/$1.pid")/stat" 2>/dev/null | cut -c 1) in
    T) echo frozen ;;
    Z | X | '') echo ended ;;
    *) echo running ;;
  esac
}

# running NAME: whether the process that was started is still there.
running() {
  local pid
  pid=$(cat "$DIR/$1.pid" 2>/dev/null) && [[ -n $pid ]] || return 1
  [[ $(born "$pid") == "$(cat "$DIR/$1.born" 2>/dev/null)" ]] && [[ $(process_state "$1") != ended ]]
}

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# port_of NAME: the port that NAME keeps; a free one is drawn the first time.
port_of() {
  local file=$DIR/$1.port port
  if [[ ! -s $file ]]; then
    (
      flock 8
      while :; do
        port=$((21000 + RANDOM % 9000))
        grep -qsx "$port" "$DIR"/*.port || listens "$port" || break
      done
      echo "$port" >"$file"
    ) 8>"$DIR/.ports"
  fi
  cat "$file"
}

# launch NAME COMMAND...: a process that leads a group of its own and writes NAME.log, new each time.
launch() {
  local name=$1 pid
  shift
  mkdir -p "$DIR/$name"
  [[ ! -e $DIR/$name.log ]] || mv -f "$DIR/$name.log" "$DIR/$name.log.before"
  (cd "$DIR/$name" && exec setsid "$@" >>"$DIR/$name.log" 2>&1 </dev/null) &
  pid=$!
  echo "$pid" >"$DIR/$name.pid"
  born "$pid" >"$DIR/$name.born" || true
}

# until_ready NAME COMMAND...: until COMMAND succeeds; ends early where the process does.
until_ready() {
  local name=$1 last=$((SECONDS + WAIT))
  shift
  until "$@" >/dev/null 2>&1; do
    if ! running "$name"; then
      tail -n 20 "$DIR/$name.log" >&2
      say "$name ended while it was starting; all it said: $DIR/$name.log"
      exit 1
    fi
    if ((SECONDS >= last)); then
      tail -n 20 "$DIR/$name.log" >&2
      say "$name is not ready after $WAIT s; all it said: $DIR/$name.log"
      exit 1
    fi
    sleep 0.1
  done
}

# end_process NAME: SIGTERM, and SIGKILL after 20 s.
end_process() {
  local name=$1 pid last=$((SECONDS + 20))
  running "$name" || return 0
  pid=$(cat "$DIR/$name.pid")
  kill -CONT -- "-$pid" 2>/dev/null || true
  kill -TERM "$pid" 2>/dev/null || true
  while running "$name" && ((SECONDS < last)); do sleep 0.05; done
  if running "$name"; then
    say "$name did not end when asked; killed"
    kill -KILL -- "-$pid" 2>/dev/null || true
  fi
  rm -f "$DIR/$name.pid" "$DIR/$name.born"
}

# certificate: an authority and a certificate for 127.0.0.1 that it signed, in DIR/tls; made once, by
# the first of the services that start side by side.
certificate() {
  local tls=$DIR/tls
  command -v openssl >/dev/null || return 1
  mkdir -p "$tls"
  (
    flock -w 60 7 || exit 1
    [[ ! -s $tls/server.pem ]] || exit 0
    cd "$tls"
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 -subj '/CN=test authority' \
      -addext 'basicConstraints=critical,CA:TRUE' -keyout ca.key -out ca.pem
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj '/CN=localhost' -keyout server.key -out server.csr
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n' >server.ext
    openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 -extfile server.ext -out server.new
    chmod 600 server.key ca.key
    mv server.new server.pem
  ) 7>"$DIR/tls.lock" >"$DIR/tls.log" 2>&1
}
