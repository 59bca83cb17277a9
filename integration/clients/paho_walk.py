"""A walk with paho-mqtt: paho_walk.py first|second HOST PORT 3.1.1|5 tcp|ws CLIENTID

first: subscribe, and get a message at each QoS. second: get what was published
while away, in a resumed session. What happens is printed line by line.
"""

import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

phase, host, port, version, transport, name = sys.argv[1:7]
five = version == "5"
patience = 30


class Client:
    def __init__(self, name, keep):
        self.events = queue.Queue()
        self.keep = keep
        more = {} if five else {"clean_session": not keep}
        self.c = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5 if five else mqtt.MQTTv311,
            transport="websockets" if transport == "ws" else "tcp", **more)
        if transport == "ws":
            self.c.ws_set_options(path="/mqtt")
        self.c.on_connect = lambda c, u, flags, reason, p: self.events.put(
            f"connected {str(reason).lower()} present={flags.session_present}")
        self.c.on_subscribe = lambda c, u, mid, codes, p: self.events.put("subscribed " + " ".join(str(r.value) for r in codes))
        self.c.on_unsubscribe = lambda c, u, mid, codes, p: self.events.put("unsubscribed")
        self.c.on_message = lambda c, u, m: self.events.put(f"message {m.topic} {m.payload.decode()} qos={m.qos} dup={m.dup}")
        self.c.on_disconnect = lambda c, u, flags, reason, p: self.events.put("disconnected")

    def open(self, clean=False):
        more = {}
        if five:
            more["clean_start"] = clean or not self.keep
            if self.keep and not clean:
                more["properties"] = Properties(PacketTypes.CONNECT)
                more["properties"].SessionExpiryInterval = 300
        self.c.connect(host, int(port), 60, **more)
        self.c.loop_start()
        self.wait()

    def wait(self):
        print(self.events.get(timeout=patience), flush=True)

    def publish(self, topic, payload, qos):
        self.c.publish(topic, payload, qos).wait_for_publish(patience)

    def close(self):
        self.c.disconnect()
        while self.events.get(timeout=patience) != "disconnected":
            pass
        self.c.loop_stop()


sub, pub = Client(name, True), Client(name + "-pub", False)
if phase == "first":
    sub.open()
    sub.c.subscribe(name + "/#", 2)
    sub.wait()
    pub.open()
    for qos in range(3):
        pub.publish(f"{name}/live", f"at {qos}", qos)
        sub.wait()
else:
    pub.open()
    for i in range(10):
        pub.publish(f"{name}/away", f"number {i}", 1 + i // 5)
    sub.open()
    for _ in range(10):
        sub.wait()
    pub.publish(f"{name}/live", "after", 2)
    sub.wait()
    sub.c.unsubscribe(name + "/#")
    sub.wait()
    pub.publish(f"{name}/live", "nobody", 1)
sub.close()
pub.close()
