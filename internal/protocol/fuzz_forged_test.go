package protocol_test

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce/internal/envelope"
	"github.com/fetchonce/fetchonce/internal/protocol"
	"github.com/fetchonce/fetchonce/internal/redistest"
)

// A forger derives forged data from bytes. Without bytes it returns zeros.
type forger struct {
	data []byte
	p    *process
}

func (f *forger) byte() byte {
	if len(f.data) == 0 {
		return 0
	}
	b := f.data[0]
	f.data = f.data[1:]
	return b
}

func (f *forger) number() int64 {
	n := min(len(f.data), 8)
	var b [8]byte
	copy(b[8-n:], f.data[:n])
	f.data = f.data[n:]
	return int64(binary.BigEndian.Uint64(b[:]))
}

// text returns a text that a script may parse: a number, a time near now, a name, or any bytes.
func (f *forger) text() string {
	switch kind := f.byte(); kind % 8 {
	case 0:
		return strconv.FormatInt(f.number(), 10)
	case 1: // a fence about now
		return strconv.FormatInt(time.Now().UnixMicro()+f.number()>>40, 10)
	case 2: // the end of a mark about now
		return strconv.FormatInt(time.Now().UnixMilli()+f.number()>>44, 10)
	case 3:
		words := []string{"", "nan", "inf", "0x1f", "1e15", "-1", "p.0", "foreign.1", "enever", "9007199254740993", "99999999999999999999"}
		return words[int(kind>>3)%len(words)]
	case 4:
		return strings.Repeat(string(rune('0'+kind>>3%10)), 1<<(f.byte()%18))
	default:
		n := min(int(kind>>3), len(f.data))
		text := string(f.data[:n])
		f.data = f.data[n:]
		return text
	}
}

// value returns an envelope with any stamp and times.
func (f *forger) value() []byte {
	b := seal(time.Now().UnixMicro()+f.number()>>(f.byte()%64), int(f.byte()))
	binary.BigEndian.PutUint64(b[16:], uint64(f.number()))
	binary.BigEndian.PutUint64(b[40:], uint64(f.number()))
	return b[:len(b)-int(f.byte())%len(b)]
}

// forge writes a key of any type, with any TTL or none. If it is a hash, it has these fields.
func (f *forger) forge(name string, fields ...string) {
	ctx, rdb := f.p.t.Context(), f.p.rdb
	switch kind := f.byte(); kind % 8 {
	case 0:
		return
	case 1:
		f.p.must(rdb.RPush(ctx, name, "foreign").Err())
	case 2:
		f.p.must(rdb.ZAdd(ctx, name, redis.Z{Member: "foreign"}).Err())
	case 3:
		f.p.must(rdb.Set(ctx, name, f.value(), 0).Err())
	case 4:
		f.p.must(rdb.Set(ctx, name, f.text()+"x", 0).Err())
	default:
		for _, field := range fields {
			if f.byte()%2 == 1 {
				f.p.must(rdb.HSet(ctx, name, field, f.text()).Err())
			}
		}
		many := 1 << (f.byte() % 12)
		all := make([]any, 0, 2*many)
		for i := range many {
			all = append(all, fmt.Sprint("w", i), "1")
		}
		f.p.must(rdb.HSet(ctx, name, all...).Err())
	}
	if ms := f.number() >> (f.byte() % 64); ms > 0 && ms < 100*year.Milliseconds() {
		f.p.must(rdb.PExpire(ctx, name, time.Duration(ms)*time.Millisecond).Err())
	}
}

// lease sends ACQUIRE as a load does, until it has the lease. The test fails if that takes longer
// than LongestLease and its own lease.
func (f *forger) lease() (owner string, fence int64) {
	p := f.p
	owner = p.owner()
	var over *protocol.PassOver
	for until := time.Now().Add(protocol.LongestLease + lease); ; {
		if time.Now().After(until) {
			p.t.Fatalf("there is no lease after %v", protocol.LongestLease+lease)
		}
		a := p.acquire(owner, over)
		switch a.State {
		case protocol.Leased:
			return owner, a.Fence
		case protocol.Wait:
			if a.Left > protocol.LongestLease {
				p.t.Fatalf("Acquire = wait for %v", a.Left)
			}
			time.Sleep(min(a.Left, time.Second) + time.Millisecond)
		case protocol.Failed:
			if a.Left > p.ErrorTTL || len(a.Failure.Text) > protocol.LongestFailure {
				p.t.Fatalf("Acquire = a failure of %d bytes for %v", len(a.Failure.Text), a.Left)
			}
			time.Sleep(a.Left + time.Millisecond)
		default:
			if len(a.Value) > protocol.StageAbove {
				p.t.Fatalf("Acquire = a value of %d bytes", len(a.Value))
			}
			head, _ := p.Get(p.t.Context(), key, envelope.Size-1) // of another type, it has none
			next := &protocol.PassOver{Head: head}
			if over == nil && len(head) == envelope.Size {
				next.Ended = int64(binary.BigEndian.Uint64(head[16:]) + binary.BigEndian.Uint64(head[40:]))
			}
			over = next
		}
	}
}

// wantStored stores a value as a load does, and checks its fence.
func (f *forger) wantStored() {
	p := f.p
	owner, fence := f.lease()
	if now := time.Now().UnixMicro(); fence < now || fence > now+1001 {
		p.t.Errorf("the fence is %d, at %d", fence, now)
	}
	if ours, err := p.Renew(p.t.Context(), leaseOf(owner, 0), lease); !ours || err != nil {
		p.t.Errorf("Renew = %v, %v", ours, err)
	}
	sealed := seal(fence, 1)
	if filled := p.fill(owner, fence, sealed, ttl); !filled.Stored || filled.Refused != nil {
		p.t.Errorf("Fill = %+v", filled)
	}
}

func forged(f *testing.F, check func(f *forger)) {
	f.Helper()
	for kind := range byte(8) {
		for _, rest := range []string{"", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "\x01\x03\x3b\x01\x03\x43\x01\x09\x00\x00\x00\x00\x0f\xff\xff\xff"} {
			f.Add([]byte(string(kind) + rest + string(kind) + rest))
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) {
			p := newClient(t, redistest.Bubble(t).Backend(), "p")
			p.ErrorTTL = 5 * time.Second
			check(&forger{data: data, p: p})
			p.clear()
		})
	})
}

// FuzzForgedLease writes anything to the keys of a lease and a value. A load still stores its value
// within a lease, and no forged fence counts.
func FuzzForgedLease(f *testing.F) {
	forged(f, func(f *forger) {
		f.forge(key.Meta(), "o", "f", "e", "b", "u")
		f.forge(key.Value)
		f.wantStored()
		f.p.must(f.p.rdb.Del(f.p.t.Context(), key.Value).Err())
		f.wantStored() // after a tainted lease, too
		if f.p.get() == "" {
			f.p.t.Error("nothing is stored")
		}
		f.forge(key.Meta(), "o", "f", "e", "b", "u")
		if err := f.p.Set(f.p.t.Context(), key, "p.0", seal(0, 1), ttl); err != nil || f.p.get() == "" || f.p.exists(key.Meta()) {
			f.p.t.Errorf("Set = %v", err)
		}
	})
}

// FuzzForgedMarks writes anything to the keys of write marks, a lease and a value. An Update leaves
// no old value, and a value that is fetched after LongestLease is stored.
func FuzzForgedMarks(f *testing.F) {
	forged(f, func(f *forger) {
		p := f.p
		f.forge(key.Marks(), "m", "p.1", "p.2", "x")
		f.forge(key.Meta(), "o", "f")
		f.forge(key.Value)
		f.wantStored()
		f.forge(key.Marks(), "m", "p.1", "p.2", "x")
		f.wantUpdated()
		if !p.exists(key.Marks()) {
			return
		}
		if left := p.rdb.PTTL(p.t.Context(), key.Marks()).Val(); left < 0 || left > protocol.LongestLease {
			p.t.Errorf("the marks last %v", left)
		}
		time.Sleep(protocol.LongestLease)
		if f.wantStored(); p.get() == "" {
			p.t.Error("nothing is stored after the marks have ended")
		}
	})
}

// wantUpdated sends what an Update sends, and checks that no old value stays.
func (f *forger) wantUpdated() {
	p := f.p
	if err := p.Mark(p.t.Context(), key, "p.9", lease); err != nil || p.exists(key.Value) || p.exists(key.Meta()) {
		p.t.Fatalf("Mark = %v, a value: %v, a lease: %v", err, p.exists(key.Value), p.exists(key.Meta()))
	}
	if f.wantStored(); p.exists(key.Value) {
		p.t.Error("stored during an Update")
	}
	if err := p.Remark(p.t.Context(), key, "p.9", lease); err != nil {
		p.t.Errorf("Remark = %v", err)
	}
	if err := p.Unmark(p.t.Context(), key, "p.9"); err != nil || p.exists(key.Value) {
		p.t.Errorf("Unmark = %v", err)
	}
}
