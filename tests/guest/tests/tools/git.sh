# A repository's life: files, commits, branches, a rebase, a clone, worktrees, a collection of garbage.
files=$((10 * SIZE)) commits=$((1 + SIZE))
export HOME="$PWD" GIT_CONFIG_NOSYSTEM=1
git config --global user.name T
git config --global user.email t@example.org
git config --global init.defaultBranch main
git init -q one
cd one
for i in $(seq "$files"); do
    mkdir -p "dir$((i % 7))"
    echo "$i" > "dir$((i % 7))/file $i"
done
ln -s dir1 link
printf '#!/bin/sh\necho ran\n' > program
chmod 755 program
git add .
git commit -qm first
for i in $(seq "$commits"); do
    echo "$i" >> "dir1/file 1"
    git rm -q "dir$(((i + 1) % 7))/file $((i + 1))"
    git commit -qam "main $i"
done
git checkout -qb side HEAD~2
[ "$(./program)" = ran ]
[ "$(readlink link)" = dir1 ]
for i in $(seq "$commits"); do
    echo "$i" > "side $i"
    git add .
    git commit -qm "side $i"
done
git rebase -q main
[ "$(git rev-list --count HEAD)" = $((2 * commits + 1)) ]
git worktree add -q ../tree main
git -C ../tree checkout -qb other
echo x > ../tree/x
git -C ../tree add x
git -C ../tree commit -qm other
git worktree remove ../tree
git stash -q 2>/dev/null || true
git merge -q -m merged other
git gc -q --prune=now
git fsck --no-progress --strict
git clone -q . ../clone
git clone -q "file://$PWD" ../by-protocol
for clone in ../clone ../by-protocol; do
    [ "$(git -C "$clone" rev-parse HEAD)" = "$(git rev-parse HEAD)" ]
    [ -z "$(git -C "$clone" status --porcelain)" ]
done
git checkout -q main
git checkout -q side
git reset -q --hard HEAD~1
git clean -qfdx
[ -z "$(git status --porcelain)" ]
cd ..
rm -rf one clone by-protocol
