package mongo

import (
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
)

// pace is how many entries the oplog takes in a second, of anybody's writes: a
// cluster time counts them within its second. For one goroutine.
type pace struct {
	second uint32 // the newest that was noted
	top    uint32 // its entries so far
	before uint32 // those of the second before it; 0: nothing was noted of it
	began  time.Time
}

// note takes in a cluster time that was met at now. They may come in any order.
func (p *pace) note(at bson.Timestamp, now time.Time) {
	switch {
	case at.T > p.second:
		p.before = 0
		if at.T == p.second+1 {
			p.before = p.top
		}
		p.second, p.top, p.began = at.T, at.I, now
	case at.T == p.second:
		p.top = max(p.top, at.I)
	}
}

// paceValid is for how long a second counts: without writes the cluster time stands
// still.
const paceValid = 2 * time.Second

// entries gives the entries of a second, of the fuller of the last two; 0: there is
// none of late.
func (p *pace) entries(now time.Time) int {
	if now.Sub(p.began) > paceValid {
		return 0
	}
	return int(max(p.top, p.before))
}
