# Packages of this folder alone, with many files, a program and a script each: installed by their lock,
# run, and where there is time installed anew over themselves and taken out.
packages=$((2 * SIZE)) files=$((20 * SIZE))
export HOME="$PWD" npm_config_offline=true npm_config_audit=false npm_config_fund=false
export npm_config_update_notifier=false npm_config_loglevel=error npm_config_cache="$PWD/cache"
mkdir packages app
wanted= locked=
for i in $(seq "$packages"); do
    mkdir -p "package/lib"
    for j in $(seq "$files"); do
        echo "module.exports = $j;" > "package/lib/module-$j.js"
    done
    echo "#!/usr/bin/env node
console.log('p$i', require('./lib/module-$files.js'));" > package/main.js
    echo "{\"name\": \"p$i\", \"version\": \"1.0.0\", \"bin\": \"main.js\"}" > package/package.json
    tar czf "packages/p$i.tgz" package
    rm -r package
    wanted="$wanted${wanted:+, }\"p$i\": \"file:../packages/p$i.tgz\""
    locked="$locked, \"node_modules/p$i\": {\"version\": \"1.0.0\",
        \"resolved\": \"file:../packages/p$i.tgz\", \"bin\": {\"p$i\": \"main.js\"}}"
done
cd app
echo "{\"name\": \"app\", \"version\": \"1.0.0\", \"dependencies\": {$wanted},
    \"scripts\": {\"postinstall\": \"p1 > installed\"}}" > package.json
echo "{\"name\": \"app\", \"version\": \"1.0.0\", \"lockfileVersion\": 3, \"requires\": true, \"packages\":
    {\"\": {\"name\": \"app\", \"version\": \"1.0.0\", \"hasInstallScript\": true,
    \"dependencies\": {$wanted}}$locked}}" > package-lock.json
installed() {
    npm ci > /dev/null
    [ "$(cat installed)" = "p1 $files" ]
    [ "$(find node_modules -name 'module-*.js' | wc -l)" = $((packages * files)) ]
    [ "$(node_modules/.bin/p$packages)" = "p$packages $files" ]
}
installed
if [ "$SIZE" != 1 ]; then
    rm installed
    installed
    npm install > /dev/null
    npm ls --all > /dev/null
    npm uninstall p1 --ignore-scripts > /dev/null
    [ ! -e node_modules/p1 ]
fi
rm -rf node_modules
