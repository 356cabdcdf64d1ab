# Removes what a cluster leaves behind when the test binary that started it has
# ended, be it by kill -9: then standard input ends.
#
# $1 the directory of the cluster, with one of each node in it
# $2 the name of the file, in a node's directory, with its process id

trap '' HUP INT TERM # which go to the whole group; we end after the others
while read -r _; do :; done
kill -9 $(cat "$1"/*/"$2") 2>/dev/null
rm -rf "$1"
