# rsync, tar and cp take a tree with all that a tree can hold, and bring the same again.
files=$((20 * SIZE))
umask 022
mkdir -p tree/sub/empty
for i in $(seq "$files"); do
    echo "$i" > "tree/sub/a file with a name that is not short, number $i"
done
printf x > tree/sub/$(printf 'n%.0s' $(seq 255))
echo composed > "tree/$(printf 'caf\303\251')"
echo decomposed > "tree/$(printf 'cafe\314\201')"
ln -s ../.. tree/up
ln -s /nowhere tree/dangling
ln tree/sub/a*number\ 1 tree/hard
mkfifo tree/fifo
cp /bin/true tree/program
chmod 751 tree/program
chmod 400 tree/hard
truncate -s 8M tree/sparse
echo end >> tree/sparse
touch -d '2001-02-03 04:05:06.789' tree/sub/empty
python3 -c 'import os; os.setxattr("tree/program", "user.note", b"kept")'
[ "$(ls tree | grep -c caf)" = 2 ]

# What a tree is, in words that can be compared.
words() {
    (cd "$1" && find . -printf '%P %y %m %s %T+ %n %l\n' | grep -v '^ d\|^[^ ]* d ' | sort)
    (cd "$1" && find . -type d -printf '%P %m\n' | sort)
    python3 -c 'import os, sys; print(os.getxattr(sys.argv[1] + "/program", "user.note"))' "$1"
    (cd "$1" && find . -type f ! -name sparse -exec sha256sum {} + | sort)
    tail -c 4 "$1/sparse"
    [ "$(stat -c %b "$1/sparse")" -lt 1000 ]
}
words tree > expected
rsync -aHXS tree/ by-rsync/
tar cSf - --xattrs -C tree . | (mkdir by-tar && tar xSpf - --xattrs -C by-tar)
cp -a --sparse=always tree by-cp
for copy in by-rsync by-tar by-cp; do
    words "$copy" > found
    diff expected found || { echo "$copy is another tree"; exit 1; }
done
[ -z "$(rsync -aHXSi --checksum tree/ by-rsync/ | grep -v /\$)" ]
rm "tree/sub/a file with a name that is not short, number 2"
echo changed > tree/sub/new
rsync -aHXS --delete tree/ by-rsync/
diff -r --no-dereference -x fifo -x sparse tree by-rsync
rm -rf tree by-rsync by-tar by-cp
