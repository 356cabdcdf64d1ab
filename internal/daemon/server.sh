# Runs a server until standard input ends. Standard input ends when the process that
# started this script closes it or ends, also by kill -9.
#
# $1 the server's directory, which receives its log
# $2 "keep", or "remove" to remove that directory when the server has ended
# $3 the signal that ends the server   $4... the server and its arguments
dir=$1 files=$2 signal=$3
shift 3

"$@" </dev/null >"$dir/log" 2>&1 &
server=$!

# A background job has no standard input unless the script redirects one to it.
exec 9<&0
{
	while read -r _; do :; done
	kill -"$signal" $server
} <&9 &
watcher=$!

wait $server
kill $watcher 2>/dev/null
if [ "$files" = remove ]; then rm -rf "$dir"; fi
