# Runs a PostgreSQL until standard input ends: whoever started us has stopped
# us, or has ended, be it by kill -9.
#
# $1 the directory of PostgreSQL's programs   $2 the server's own directory
# $3 "keep", or "remove" for its files to go when it has ended

# Nothing is fsynced: the data need not outlive the machine.
"$1/postgres" -D "$2/data" \
	-c listen_addresses= -c unix_socket_directories="$2" -c unix_socket_permissions=0777 \
	-c fsync=off -c synchronous_commit=off -c full_page_writes=off \
	-c max_connections=200 -c logging_collector=off \
	</dev/null >"$2/log" 2>&1 &
server=$!

# A job in the background has no standard input unless it is given one.
exec 9<&0
{
	while read -r _; do :; done
	kill -INT $server # ends its clients' connections, then itself
} <&9 &
watcher=$!

wait $server
kill $watcher 2>/dev/null
if [ "$3" = remove ]; then rm -rf "$2"; fi
