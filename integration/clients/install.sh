#!/bin/sh
# Puts foreign MQTT clients into .cache/clients: paho-mqtt (PyPI) and mqtt.js (npm), in
# fixed versions. What is there already is left alone; what cannot be installed is told
# in one line, and the tests that want it are skipped.
set -u
root=$(cd "$(dirname "$0")/../.." && pwd)
cache=$root/.cache/clients
paho=2.1.0
mqttjs=5.14.0
mkdir -p "$cache"

python=$cache/python
if [ ! -e "$python/paho-mqtt-$paho" ]; then
	if command -v python3 >/dev/null && python3 -m venv --clear "$python" >/dev/null 2>&1 \
		&& "$python/bin/pip" install --quiet --disable-pip-version-check "paho-mqtt==$paho" >/dev/null 2>&1; then
		touch "$python/paho-mqtt-$paho"
	else
		echo "install.sh: paho-mqtt $paho could not be installed (python3 with venv, and PyPI): its tests are skipped" >&2
	fi
fi

node=$cache/node
if [ ! -e "$node/mqtt-$mqttjs" ]; then
	if command -v npm >/dev/null && mkdir -p "$node" \
		&& npm install --prefix "$node" --no-save --no-audit --no-fund --ignore-scripts --loglevel=error "mqtt@$mqttjs" >/dev/null 2>&1; then
		touch "$node/mqtt-$mqttjs"
	else
		echo "install.sh: mqtt.js $mqttjs could not be installed (npm): its tests are skipped" >&2
	fi
fi
exit 0
