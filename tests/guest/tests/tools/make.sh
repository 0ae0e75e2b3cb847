# Compilers and parallel make: many small files, an archive, a program that is run where it was linked.
files=$((6 * SIZE)) objects=
for i in $(seq "$files"); do
    echo "int f$i(void) { return $i; }" > "f$i.c"
    objects="$objects f$i.o"
done
echo "extern int f$files(void); int main(void) { return f$files() == $files ? 0 : 1; }" > main.c
printf 'program: main.o all.a\n\tgcc -o $@ $^\nall.a:%s\n\tar rcs $@ $^\n' "$objects" > Makefile
make -sj4
./program
make -sq
touch f1.c
if make -sq; then exit 1; fi
make -sj4
./program
# Editors save so: into a new file, which takes the name.
sed -i 's/return 1;/return 7;/' f1.c
grep -q 'return 7;' f1.c
if ls | grep -q '^sed'; then exit 1; fi
