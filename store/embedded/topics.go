package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"rewindmq/schema"
	"rewindmq/store"
)

// topic is one topic name that the log has messages of.
type topic struct {
	id   uint32
	name string
	// epoch is the newest epoch in which the topic was used. When retention
	// drops it, the name goes too. Only the committer reads or writes it.
	epoch uint32
}

// catalog knows the topics of the log, by name, by id, and as a trie against
// which wildcards are looked up.
//
// It holds at most limit topics, and levelsPerTopic times as many levels: names may
// have hundreds, and each costs more than the name. Beyond, it is not complete: names
// and ids are then looked up in the engine, and wildcards are judged message by
// message. Only the committer changes it.
type catalog struct {
	limit int

	mu       sync.RWMutex
	byName   map[string]*topic
	byID     map[uint32]*topic
	root     level
	levels   int // below root
	complete bool
}

// levelsPerTopic is what names have on the average, at most: most of their levels are
// others' as well.
const levelsPerTopic = 4

// level is one level of the trie.
type level struct {
	topic *topic
	below map[string]*level
}

func newCatalog(limit int) *catalog {
	return &catalog{limit: limit, byName: map[string]*topic{}, byID: map[uint32]*topic{}, complete: true}
}

// add takes in a topic. Beyond the limit it is only noted that some are missing.
func (c *catalog) add(t *topic) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.byName) >= c.limit || c.levels+strings.Count(t.name, "/")+1 > c.limit*levelsPerTopic {
		c.complete = false
		return
	}
	c.byName[t.name], c.byID[t.id] = t, t
	at := &c.root
	for rest, more := t.name, true; more; {
		var name string
		name, rest, more = strings.Cut(rest, "/")
		next := at.below[name]
		if next == nil {
			if at.below == nil {
				at.below = make(map[string]*level, 1)
			}
			next = &level{}
			at.below[name] = next
			c.levels++
		}
		at = next
	}
	at.topic = t
}

// remove forgets a topic.
func (c *catalog) remove(t *topic) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byName[t.name] != t {
		return
	}
	delete(c.byName, t.name)
	delete(c.byID, t.id)
	gone, _ := c.root.remove(t.name, true)
	c.levels -= gone
}

// remove tells how many levels are gone below, and whether nothing is left.
func (l *level) remove(rest string, more bool) (gone int, empty bool) {
	if !more {
		l.topic = nil
		return 0, len(l.below) == 0
	}
	name, rest, more := strings.Cut(rest, "/")
	if next := l.below[name]; next != nil {
		if gone, empty = next.remove(rest, more); empty {
			delete(l.below, name)
			gone++
		}
	}
	return gone, l.topic == nil && len(l.below) == 0
}

// named gives the topic that is in memory under a name.
func (c *catalog) named(name string) *topic {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.byName[name]
}

// match adds the ids of the topics that filter matches. The answer is only of
// use while the catalog is complete.
func (c *catalog) match(filter string, into map[uint32]string) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if schema.Wildcard(filter) == "" {
		if t := c.byName[filter]; t != nil {
			into[t.id] = t.name
		}
		return
	}
	c.root.match(filter, true, into)
}

func (l *level) match(filter string, first bool, into map[uint32]string) {
	name, rest, more := strings.Cut(filter, "/")
	switch name {
	case "#":
		l.all(first, into)
		return
	case "+":
		for n, next := range l.below {
			// A filter that begins with a wildcard does not match a topic that
			// begins with `$` [MQTT-4.7.2-1].
			if first && strings.HasPrefix(n, "$") {
				continue
			}
			next.step(rest, more, into)
		}
	default:
		if next := l.below[name]; next != nil {
			next.step(rest, more, into)
		}
	}
}

// step goes on below a level that matched.
func (l *level) step(rest string, more bool, into map[uint32]string) {
	if more {
		l.match(rest, false, into)
		return
	}
	if l.topic != nil {
		into[l.topic.id] = l.topic.name
	}
}

// all adds the level itself (`sport/#` matches sport) and what is below it.
func (l *level) all(first bool, into map[uint32]string) {
	if l.topic != nil {
		into[l.topic.id] = l.topic.name
	}
	for n, next := range l.below {
		if first && strings.HasPrefix(n, "$") {
			continue
		}
		next.all(false, into)
	}
}

// size tells how many topics are in memory, and whether they are all.
func (c *catalog) size() (int, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return len(c.byName), c.complete
}

// nameOf gives the name of a topic id, from memory or from the engine.
func (l *Log) nameOf(id uint32) (string, error) {
	l.topics.mu.RLock()
	t := l.topics.byID[id]
	l.topics.mu.RUnlock()
	if t != nil {
		return t.name, nil
	}
	key := epochKey(nil, keyTopicName, id)
	value, closer, err := l.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return "", corrupt(key, errors.New("topic of a message is missing"))
	}
	if err != nil {
		return "", engineError("topic name", err)
	}
	defer closer.Close()
	_, name, err := readTopicName(value)
	if err != nil {
		return "", corrupt(key, err)
	}
	return name, nil
}

// idOf gives the id of a name from the engine: for a catalog that is not
// complete.
func (l *Log) idOf(name string) (uint32, bool, error) {
	key := stringKey(nil, keyTopicID, name)
	value, closer, err := l.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, engineError("topic id", err)
	}
	defer closer.Close()
	if len(value) != 5 || value[0] != encoding {
		return 0, false, corrupt(key, errVersion)
	}
	return binary.BigEndian.Uint32(value[1:]), true, nil
}

func putTopicName(b []byte, t *topic) []byte {
	return append(appendU32(append(b, encoding), t.epoch), t.name...)
}

func readTopicName(value []byte) (epoch uint32, name string, err error) {
	r := decode(value)
	epoch = r.u32()
	return epoch, string(r.b), r.err
}

// loadTopics fills the catalog.
func (l *Log) loadTopics() (next uint32, err error) {
	next = 1
	err = l.scan([]byte{keyTopicName}, nil, func(key, value []byte) error {
		if len(key) != 5 {
			return corrupt(key, errShort)
		}
		t := &topic{id: binary.BigEndian.Uint32(key[1:])}
		var err error
		if t.epoch, t.name, err = readTopicName(value); err != nil {
			return corrupt(key, err)
		}
		next = t.id + 1
		l.topics.add(t)
		return nil
	})
	return next, err
}

// topicFor gives the topic of a message that is being staged, and makes it when
// it is new. The first use in each epoch is noted, so that retention knows which
// names nobody needs any more.
func (c *committer) topicFor(name string) (*topic, error) {
	t := c.l.topics.named(name)
	if t == nil {
		t = c.fresh[name]
	}
	if t == nil {
		if _, complete := c.l.topics.size(); !complete {
			id, found, err := c.l.idOf(name)
			if err != nil {
				return nil, err
			}
			if found {
				t = &topic{id: id, name: strings.Clone(name)}
				c.remember(t)
			}
		}
	}
	if t == nil {
		if c.nextTopic == 0 {
			return nil, fmt.Errorf("%w: topic ids are used up", store.ErrTooLarge)
		}
		t = &topic{id: c.nextTopic, name: strings.Clone(name)} // name may hold a whole packet
		c.nextTopic++
		c.set(stringKey(c.key[:0], keyTopicID, name), appendU32([]byte{encoding}, t.id))
		c.l.topics.add(t)
		if c.l.topics.named(name) == nil {
			c.remember(t)
		}
	}
	if t.epoch != c.epoch.id {
		t.epoch = c.epoch.id
		c.set(epochKey(c.key[:0], keyTopicName, t.id), putTopicName(nil, t))
	}
	return t, nil
}

// remember keeps topics that the catalog has no room for, and no others: what retention
// drops from the catalog would live on here, without its keys. Bound: 65,536 and
// those of one batch: it is cleared between batches, as the engine does not yet
// tell those that are only staged.
func (c *committer) remember(t *topic) {
	if c.fresh == nil {
		c.fresh = make(map[string]*topic)
	}
	c.fresh[t.name] = t
}
