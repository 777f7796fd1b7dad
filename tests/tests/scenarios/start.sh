#!/bin/bash
# Starts every scenario in the Debian guest. Units, so that PID 1 is the parent of each: the shell
# that the lab controls the guest through is itself in contact with the outside.
set -euo pipefail
cd /opt/scenarios
run="python3 /opt/scenarios/programs.py"

# unit NAME OPTION... -- COMMAND...
unit() {
  systemd-run --quiet --no-block --collect --unit="$@"
}

# 1. Beside a Redis that clients outside use: work that concerns nobody.
unit s1-batch -p Nice=19 -- $run compute
unit s1-chess -p Nice=19 -- stockfish bench 16 2 60

# 2. nginx in front of a server on a unix socket, and such a server that nobody outside asks.
unit s2-backend -- $run serve /run/s2-backend
unit s2-own-server -- $run serve /run/s2-own
cat >/etc/nginx/sites-enabled/s2 <<'END'
server {
  listen 8080;
  location / { proxy_pass http://unix:/run/s2-backend; }
}
END
systemctl reload nginx
unit s2-tail -- sh -c 'tail -F /var/log/nginx/access.log >/dev/null'

# 3. PostgreSQL with one client that somebody outside drives, and one that nobody does.
runuser -u postgres -- psql -qX -c "alter role postgres password 'scenario'" \
  -c 'create database driven' -c 'create database own'
unit s3-web -E PGPASSWORD=scenario -- $run query 5480 driven
unit s3-own -p User=postgres -- sh -c "$run statements | psql -qAtX own >/dev/null"

# 4. A pipeline to the network, and one to a file.
unit s4-out -- sh -c "$run produce | tr x y | nc -l 9000"
unit s4-file -- sh -c "$run produce | tr x y | cat >/var/tmp/s4"

# 5. Shells of ssh: these begin outside.
mkdir -p -m 700 /root/.ssh
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/scenario
cp /root/.ssh/scenario.pub /root/.ssh/authorized_keys

# 6. The journal hears two of three.
unit s6-logger -- bash -c 'while :; do logger still here; sleep 0.2; done'
unit s6-cat -- systemd-cat $run log
unit s6-silent -- sleep infinity

# 7. As in containers: a PID namespace, a network namespace.
unit s7-pids -- unshare --pid --fork --mount-proc sh -c "$run produce | cat >/dev/null"
unit s7-net-server -p PrivateNetwork=yes -- $run answer 127.0.0.1 7070

# 8. What uses the system's hubs: D-Bus, PID 1, udev.
unit s8-bus -- bash -c 'while :; do systemctl is-active cron; loginctl list-sessions; sleep 0.5; done'
unit s8-udev -- bash -c 'while :; do udevadm trigger --settle --subsystem-match=mem; sleep 1; done'

# What needs the others.
for _ in $(seq 300); do
  [ -S /run/s2-own ] && [ -S /run/s2-backend ] && curl -sf localhost:8080 >/dev/null && break
  sleep 0.1
done
unit s2-own-client -- $run visit /run/s2-own
for port in 5480 9000; do
  for _ in $(seq 300); do
    ss -Hltn "sport = $port" | grep -q . && break
    sleep 0.1
  done
done
unit s7-net-client -p PrivateNetwork=yes -p JoinsNamespaceOf=s7-net-server.service -- \
  $run ask 127.0.0.1 7070
