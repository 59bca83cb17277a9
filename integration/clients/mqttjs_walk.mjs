// A walk with mqtt.js: mqttjs_walk.mjs first|second HOST PORT 3.1.1|5 tcp|ws CLIENTID
//
// The same as paho_walk.py, and the same lines.
import mqtt from 'mqtt'

const [phase, host, port, version, transport, name] = process.argv.slice(2)
const five = version === '5'
const patience = 30000

class Client {
  constructor (name, keep) {
    this.events = []
    this.waiting = null
    const url = transport === 'ws' ? `ws://${host}:${port}/mqtt` : `mqtt://${host}:${port}`
    this.c = mqtt.connect(url, {
      clientId: name,
      protocolVersion: five ? 5 : 4,
      clean: !keep,
      properties: five && keep ? { sessionExpiryInterval: 300 } : undefined,
      reconnectPeriod: 0,
      resubscribe: false,
      manualConnect: true
    })
    // What comes in one piece with the CONNACK of a session that goes on may be told before 'connect': the library
    // looks through its store in between.
    this.early = []
    this.c.on('connect', ack => {
      this.hear(`connected success present=${ack.sessionPresent ? 'True' : 'False'}`)
      const early = this.early
      this.early = null
      early.forEach(e => this.hear(e))
    })
    this.c.on('message', (topic, payload, p) => {
      const event = `message ${topic} ${payload} qos=${p.qos} dup=${p.dup ? 'True' : 'False'}`
      if (this.early) this.early.push(event)
      else this.hear(event)
    })
    this.c.on('error', err => { console.log(`error ${err.message}`); process.exit(1) })
  }

  hear (event) {
    this.events.push(event)
    if (this.waiting) this.waiting()
  }

  async wait () {
    const timer = setTimeout(() => { console.log('nothing comes'); process.exit(1) }, patience)
    while (this.events.length === 0) await new Promise(resolve => { this.waiting = resolve })
    clearTimeout(timer)
    console.log(this.events.shift())
  }

  async open () {
    this.c.connect()
    await this.wait()
  }
}

const sub = new Client(name, true)
const pub = new Client(name + '-pub', false)
if (phase === 'first') {
  await sub.open()
  const granted = await sub.c.subscribeAsync(name + '/#', { qos: 2 })
  console.log('subscribed ' + granted.map(g => g.qos).join(' '))
  await pub.open()
  for (let qos = 0; qos < 3; qos++) {
    await pub.c.publishAsync(`${name}/live`, `at ${qos}`, { qos })
    await sub.wait()
  }
} else {
  await pub.open()
  for (let i = 0; i < 10; i++) await pub.c.publishAsync(`${name}/away`, `number ${i}`, { qos: i < 5 ? 1 : 2 })
  await sub.open()
  for (let i = 0; i < 10; i++) await sub.wait()
  await pub.c.publishAsync(`${name}/live`, 'after', { qos: 2 })
  await sub.wait()
  await sub.c.unsubscribeAsync(name + '/#')
  console.log('unsubscribed')
  await pub.c.publishAsync(`${name}/live`, 'nobody', { qos: 1 })
}
await sub.c.endAsync()
await pub.c.endAsync()
