# Runs a server until standard input ends: whoever started us has stopped us, or
# has ended, be it by kill -9.
#
# $1 the server's own directory, where its log goes
# $2 "keep", or "remove" for that directory to go when the server has ended
# $3 the signal that ends the server   $4... the server and its arguments
dir=$1 files=$2 signal=$3
shift 3

"$@" </dev/null >"$dir/log" 2>&1 &
server=$!

# A job in the background has no standard input unless it is given one.
exec 9<&0
{
	while read -r _; do :; done
	kill -"$signal" $server
} <&9 &
watcher=$!

wait $server
kill $watcher 2>/dev/null
if [ "$files" = remove ]; then rm -rf "$dir"; fi
