# A virtual environment on the share; a package built and installed from its source, and one of a wheel.
modules=$((10 * SIZE))
export HOME="$PWD" PIP_NO_INDEX=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CACHE_DIR="$PWD/cache"
# With a pip of its own where there is time: unpacking that takes longer than all the rest.
if [ "$SIZE" = 1 ]; then
    python3 -m venv --system-site-packages --without-pip env
    pip="python3 -m pip --python env/bin/python"
else
    python3 -m venv env
    pip=env/bin/pip
fi
mkdir -p source/one
for i in $(seq "$modules"); do
    echo "N = $i" > "source/one/m$i.py"
done
echo "def main():
    from one.m$modules import N
    print('one', N)" > source/one/__init__.py
echo "#include <Python.h>
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, \"fast\", 0, -1, 0};
PyMODINIT_FUNC PyInit_fast(void) { return PyModule_Create(&module); }" > source/fast.c
echo "from setuptools import Extension, setup
setup(name='one', version='1.0', packages=['one'], ext_modules=[Extension('fast', ['fast.c'])],
      entry_points={'console_scripts': ['one = one:main']})" > source/setup.py
python3 - <<'END'
import zipfile
with zipfile.ZipFile('two-1.0-py3-none-any.whl', 'w') as wheel:
    wheel.writestr('two.py', 'N = 2\n')
    wheel.writestr('two-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\nName: two\nVersion: 1.0\nRequires-Dist: one\n')
    wheel.writestr('two-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
    wheel.writestr('two-1.0.dist-info/RECORD', '')
END
$pip -q install --no-build-isolation --find-links . ./source two 2> log || { cat log; exit 1; }
[ "$(env/bin/one)" = "one $modules" ]
env/bin/python -c 'import fast, two; assert two.N == 2'
if [ "$SIZE" != 1 ]; then
    $pip -q install --force-reinstall --no-deps ./two-1.0-py3-none-any.whl
    $pip check > /dev/null
    $pip -q uninstall -y one
    if env/bin/python -c 'import one' 2> /dev/null; then exit 1; fi
fi
rm -rf env
