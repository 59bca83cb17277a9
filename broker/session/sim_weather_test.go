package session

// weather is what a run is like: each seed draws its own, so that some runs are
// full of crashes, others of lagging hubs, of retained messages, or of clients
// that move. Rates are chances per look of the scheduler.
type weather struct {
	steps int // with faults

	time                             float64 // the clock goes on
	chaos                            float64
	crash, pause, wake, jump, skew   float64 // shares of chaos
	answerLost, cutShort, neverLands float64
	again                            float64 // sent again before the answer
	giveUp                           float64
	slow                             [kinds]float64 // shares of attempts that crawl, by kind of writer
	crawl                            float64
	hub                              []float64 // of the nodes, in turn
	save, merge, block, keep         float64
	noSpace                          float64

	publish, subscribe, unsubscribe, cut, disconnect float64
	ack, back                                        float64
	keepUnread                                       float64 // a cut leaves what was sent
	retain, clear, big, small, poison, expire        float64
	will, clean                                      float64
	expiries                                         []uint32
	receiveMaximum                                   []int
	topics, filters                                  []string
	qos                                              []uint8
}

type writerKind uint8

const (
	kindWrite writerKind = iota
	kindRecord
	kindAppend
	kinds
)

// rate draws from a calm, a usual and a rough value.
func rate(w *world, calm, usual, rough float64) float64 {
	return pick(w, calm, usual, usual, usual, rough)
}

func newWeather(w *world) weather {
	x := weather{
		steps: pick(w, 150, 300, 450, 600),
		time:  rate(w, 0.02, 0.08, 0.2), chaos: rate(w, 0.002, 0.008, 0.03),
		crash: rate(w, 0, 0.25, 1), pause: rate(w, 0, 0.35, 1), wake: rate(w, 0.1, 0.3, 0.6), jump: rate(w, 0, 0.1, 0.2), skew: rate(w, 0, 0.06, 0.2),
		answerLost: rate(w, 0, 0.07, 0.2), cutShort: rate(w, 0, 0.04, 0.15), neverLands: rate(w, 0, 0.04, 0.15),
		again: rate(w, 0, 0.03, 0.15), giveUp: rate(w, 0, 0.05, 0.4), crawl: rate(w, 0.01, 0.02, 0.1),
		save: rate(w, 0.03, 0.2, 0.6), merge: rate(w, 0.05, 0.2, 0.5), block: rate(w, 0, 0.01, 0.05), keep: rate(w, 0.02, 0.1, 0.5),
		publish: rate(w, 0.1, 0.25, 0.4), subscribe: rate(w, 0.02, 0.07, 0.15), unsubscribe: rate(w, 0, 0.015, 0.04),
		cut: rate(w, 0.005, 0.025, 0.08), disconnect: rate(w, 0, 0.01, 0.04), ack: rate(w, 0.15, 0.7, 1), back: rate(w, 0.05, 0.3, 0.9),
		noSpace: rate(w, 0, 0.005, 0.05), keepUnread: rate(w, 0, 0.5, 1),
		retain: rate(w, 0, 0.25, 0.7), clear: rate(w, 0, 0.1, 0.3), big: rate(w, 0, 0.1, 0.3), small: rate(w, 0, 0.3, 0.6),
		poison: rate(w, 0, 0.02, 0.1), expire: rate(w, 0, 0.05, 0.2), will: rate(w, 0, 0.25, 0.8), clean: rate(w, 0, 0.08, 0.3),
		receiveMaximum: pick(w, []int{1, 2, 3, 9}, []int{1, 2, 3, 9}, []int{1}, []int{3, 9}),
		topics:         pick(w, simTopics, simTopics, simTopics[:1]), filters: pick(w, simFilters, simFilters, []string{"a", "#"}),
		qos: pick(w, []uint8{0, 1, 1, 2, 2}, []uint8{0, 1, 1, 2, 2}, []uint8{1}, []uint8{2}, []uint8{1, 2}),
	}
	for i := range x.slow {
		x.slow[i] = rate(w, 0, 0.06, 0.4)
	}
	for range 4 {
		x.hub = append(x.hub, pick(w, 1, 1, 0.3, 0.05))
	}
	x.expiries = pick(w, []uint32{noExpiry, noExpiry, noExpiry, 15}, []uint32{noExpiry}, []uint32{noExpiry, 15, 3})
	return x
}

const noExpiry = ^uint32(0)

// roughs are weathers that make a rule needed which the usual ones seldom need.
var roughs = []func(*weather){
	roughRuns, roughMoves, roughRecords, roughPending, roughClaims, roughRises, roughWills, roughWrites,
}

// roughRuns: many retained messages, and writes that fail.
func roughRuns(x *weather) {
	x.retain, x.subscribe, x.unsubscribe, x.cut, x.giveUp, x.neverLands, x.answerLost = 0.7, 0.04, 0, 0.02, 0.4, 0.15, 0.1
	x.poison, x.big, x.qos, x.receiveMaximum, x.save, x.time = 0, 0, []uint8{1, 2}, []int{1}, 0.6, 0.15
}

// roughMoves: clients that move, appends that crawl.
func roughMoves(x *weather) {
	x.cut, x.back, x.publish, x.slow[kindAppend], x.crawl = 0.03, 0.9, 0.4, 0.4, 0.02
	x.giveUp, x.poison, x.clean, x.qos = 0, 0, 0, []uint8{1}
}

// roughRecords: records that crawl, and cursors that are saved often.
func roughRecords(x *weather) {
	x.cut, x.back, x.publish, x.slow[kindRecord], x.crawl, x.time, x.save = 0.025, 0.9, 0.3, 0.3, 0.01, 0.15, 0.6
	x.crash, x.chaos, x.clean, x.qos = 0.5, 0.01, 0, []uint8{1, 2}
}

// roughPending: runs whose records crawl.
func roughPending(x *weather) {
	roughRecords(x)
	x.retain, x.subscribe, x.unsubscribe, x.publish = 0.7, 0.06, 0, 0.15
}

// roughClaims: claims that crawl, from nodes that crash.
func roughClaims(x *weather) {
	x.crash, x.chaos, x.slow[kindWrite], x.crawl, x.clean, x.cut, x.back = 1, 0.01, 0.5, 0.005, 0.15, 0.015, 1
	x.expiries, x.time = []uint32{noExpiry}, 0.1
}

// roughRises: subscriptions that change their QoS, and crashes.
func roughRises(x *weather) {
	x.subscribe, x.publish, x.crash, x.chaos, x.time, x.clean, x.qos = 0.12, 0.4, 1, 0.015, 0.02, 0, []uint8{2}
	x.filters, x.topics, x.retain = []string{"a"}, simTopics[:1], 0
}

// roughWills: many wills, clients that return, a keeper that is late.
func roughWills(x *weather) {
	x.will, x.cut, x.back, x.keep, x.slow[kindWrite], x.crawl, x.clean = 0.8, 0.06, 0.6, 0.5, 0.4, 0.05, 0
	x.time, x.publish, x.subscribe, x.disconnect = 0.2, 0.1, 0.02, 0
}

// roughWrites: attempts that are made again, and land late.
func roughWrites(x *weather) {
	x.slow[kindWrite], x.again, x.crawl, x.qos, x.publish = 0.3, 0.15, 0.05, []uint8{1, 2}, 0.4
}
