#!/bin/sh
# Network test of the Linux guest: `nettest serve N` answers guests that run `nettest ask ADDRESS`,
# N times.
PORT=5000

ask() {
    try=0
    until ping -c 1 -W 1 "$1" >/dev/null; do
        try=$((try + 1))
        [ "$try" -lt 60 ] || { echo "nettest: FAILED, no answer from $1"; return 1; }
    done
    ping -c 20 -i 0.05 -s 1400 "$1" | grep packets >/loss
    cat /loss
    grep -q ' 0% packet loss' /loss || { echo "nettest: FAILED, packets were lost"; return 1; }
    head -c 1048576 /dev/urandom >/data
    sum=$(sha256sum </data)
    answer=
    try=0
    # The other one may not be listening yet.
    while [ -z "$answer" ] && [ "$try" -lt 60 ]; do
        answer=$(nc "$1" $PORT </data) || sleep 1
        try=$((try + 1))
    done
    [ "$sum" = "$answer" ] || { echo "nettest: FAILED, $sum came back as $answer"; return 1; }
    echo "nettest: 1 MiB sent, their checksum came back"
}

serve() {
    answered=0
    while [ "$answered" -lt "$1" ]; do
        nc -l -p $PORT -e sha256sum && answered=$((answered + 1))
    done
    echo "nettest: answered $answered times"
}

case $1 in
    ask) ask "$2" ;;
    serve) serve "$2" ;;
esac
