package embedded

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"rewindmq/schema"
	"rewindmq/store/history"
)

// ListDeliveries implements history.Reader. Records lie by epoch, session and seq: there
// is no index of them for people's questions, which would cost every delivery. So it
// scans, so many in a call; a page ends where the scan stands, at the key of a record.
func (l *Log) ListDeliveries(ctx context.Context, of history.Query, after string, limit int) (list []history.Delivery, next string, err error) {
	if limit <= 0 || limit > history.MaxPage {
		limit = history.MaxPage
	}
	err = l.look(ctx, "list_deliveries", func(in pebble.Reader) error {
		from, err := l.historyFrom(of, after)
		if err != nil {
			return err
		}
		known := knownPlace{in: in}
		scanned := 0
		err = scanIn(in, from, []byte{keyDelivery + 1}, -1, func(key, value []byte) error {
			if len(list) == limit || scanned == l.o.historyScan {
				return errPageFull
			}
			if scanned++; scanned%1000 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			next = hex.EncodeToString(key)
			if !of.MessageID.IsZero() && !bytes.Contains(value, of.MessageID[:]) {
				return nil
			}
			var d schema.Delivery
			if err := readDelivery(&d, value); err != nil {
				return corrupt(key, err)
			}
			if !of.Match(&d) {
				return nil
			}
			r := decoder{b: key[5:]}
			session := r.u64()
			d.Seq = r.u64()
			state, err := known.state(session, &d)
			list = append(list, history.Delivery{Delivery: d, State: state})
			return err
		})
		if errors.Is(err, errPageFull) {
			return nil
		}
		next = ""
		return err
	})
	return list, next, err
}

// historyFrom gives the key to begin at. What was delivered before the message was made
// is not looked at.
func (l *Log) historyFrom(of history.Query, after string) ([]byte, error) {
	if after != "" {
		key, err := hex.DecodeString(after)
		if err != nil || len(key) != len(deliveryKey(nil, 0, 0, 0)) || key[0] != keyDelivery {
			return nil, fmt.Errorf("%w: %q", history.ErrPage, after)
		}
		return append(key, 0), nil // the next key there is
	}
	from := []byte{keyDelivery}
	if of.MessageID.IsZero() {
		return from, nil
	}
	made := time.Unix(of.MessageID.Seconds(), 0)
	all := l.epochs.list()
	for i := range all {
		if last := i+1 == len(all); last || !all[i].newest.Before(made) {
			return epochKey(nil, keyDelivery, all[i].id), nil
		}
	}
	return from, nil
}

// knownPlace is the saved place of the session that was asked for last: the records of a
// session lie together.
type knownPlace struct {
	in      pebble.Reader
	session uint64
	cursor  *schema.SessionCursor // nil: the session has ended
}

// state tells what is known of a delivery of a session.
func (p *knownPlace) state(session uint64, d *schema.Delivery) (history.State, error) {
	if p.session != session {
		p.session, p.cursor = session, nil
		key := sessionKey(nil, keyCursor, session)
		value, err := getFrom(p.in, key)
		if err != nil {
			return "", err
		}
		if value != nil {
			place, err := readPlace(value)
			if err != nil {
				return "", corrupt(key, err)
			}
			p.cursor = &place.SessionCursor
		}
	}
	if d.QoS == 2 && p.cursor != nil {
		value, err := getFrom(p.in, receivedKey(nil, session, d.Seq))
		if err != nil {
			return "", err
		}
		d.Received = value != nil
	}
	return history.StateOf(d, p.cursor), nil
}
