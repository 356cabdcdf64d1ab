# Kills the nodes of a cluster and removes its files when standard input ends. Standard
# input ends when the test binary that started the cluster ends, also by kill -9.
#
# $1 the directory of the cluster, which contains a directory for each node
# $2 the name of the file in a node's directory that contains its process id

trap '' HUP INT TERM # these go to the whole process group; this script must end last
while read -r _; do :; done
kill -9 $(cat "$1"/*/"$2") 2>/dev/null
rm -rf "$1"
