#!/bin/sh
# Two hosts on one machine: two network namespaces with host names of their own, a veth pair between them, and
# mpirun with an rsh agent that enters the other one. Runs COMMAND with one rank on each and checks that at
# least MIN_BYTES went over the wire.
# usage: two_hosts.sh MPIRUN MIN_BYTES COMMAND...
# exit status: the command's; 77 where namespaces cannot be made (the reason is printed).
mpirun=$1 min_bytes=$2
shift 2

skip() {
  echo "SKIPPED: cannot make two hosts here: $*"
  exit 77
}
for tool in ip unshare mount; do command -v $tool >/dev/null 2>&1 || skip "$tool is not installed"; done

# Without root, become root of a user namespace first, with a /run of its own for `ip netns`.
if [ "$(id -u)" != 0 ]; then
  [ -z "$OSPREY_TWO_HOSTS_NESTED" ] || skip "still no root inside a user namespace"
  why=$(unshare --user --map-root-user --net --mount true 2>&1) || skip "no root, and no user namespace: $why"
  OSPREY_TWO_HOSTS_NESTED=1 exec unshare --user --map-root-user --net --mount "$0" "$mpirun" "$min_bytes" "$@"
fi
if [ -n "$OSPREY_TWO_HOSTS_NESTED" ]; then
  why=$(mount -t tmpfs tmpfs /run 2>&1) || skip "no mounts in a user namespace: $why"
fi

a=osprey-a-$$ b=osprey-b-$$
work=$(mktemp -d) || exit 1
cleanup() {
  ip netns del $a 2>/dev/null
  ip netns del $b 2>/dev/null
  rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

why=$(ip netns add $a 2>&1 && ip netns add $b 2>&1) || skip "ip netns add: $why"
why=$(ip link add eth0 netns $a type veth peer name eth0 netns $b 2>&1) || skip "ip link add: $why"
for side in "$a 10.77.0.1" "$b 10.77.0.2"; do
  set_up=$(echo "$side" | {
    read -r ns address
    ip -n "$ns" link set lo up && ip -n "$ns" addr add "$address/24" dev eth0 && ip -n "$ns" link set eth0 up
  } 2>&1) || skip "ip addr: $set_up"
done

# What ssh would do: enter the other host and run the daemon of mpirun there. Each host has a name and a
# temporary directory of its own, as real ones do.
mkdir "$work/a" "$work/b"
cat >"$work/enter" <<AGENT
#!/bin/sh
host=\$1
shift
case \$host in
  10.77.0.1|host-a) ns=$a name=host-a tmp=$work/a ;;
  10.77.0.2|host-b) ns=$b name=host-b tmp=$work/b ;;
  *) echo "no such host: \$host" >&2; exit 1 ;;
esac
export TMPDIR=\$tmp
exec ip netns exec \$ns unshare --uts sh -c "hostname \$name && \$*"
AGENT
chmod +x "$work/enter"
why=$("$work/enter" 10.77.0.2 true 2>&1) || skip "entering a namespace: $why"

# mpirun itself runs on the first host. Open MPI would refuse root, and would count the cores twice.
cat >"$work/run" <<'RUN'
#!/bin/sh
work=$1 mpirun=$2
shift 2
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
exec "$mpirun" --host 10.77.0.1:1,10.77.0.2:1 -np 2 --map-by node --bind-to none --mca plm rsh \
  --mca plm_rsh_agent "$work/enter" --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0 "$@"
RUN
chmod +x "$work/run"
sent() { ip netns exec $1 cat /sys/class/net/eth0/statistics/tx_bytes; }
TMPDIR=$work/a ip netns exec $a unshare --uts sh -c 'hostname host-a && exec "$@"' sh "$work/run" "$work" "$mpirun" "$@"
status=$?
from_a=$(sent $a) from_b=$(sent $b)
echo "two hosts: exit status $status, host-a sent $from_a bytes, host-b sent $from_b bytes"
[ $status -eq 0 ] || exit 1
if [ "$from_a" -lt "$min_bytes" ] || [ "$from_b" -lt "$min_bytes" ]; then
  echo "FAILED: fewer than $min_bytes bytes went over the wire: the ranks did not use it"
  exit 1
fi
