package oncehttp_test

import (
	"fmt"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/oncehttp"
)

func TestARequestWaitsForMaxWait(t *testing.T) {
	for _, wait := range []time.Duration{0, 2 * time.Second} {
		for _, sameProcess := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v, same process %t", wait, sameProcess), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r, v := redistest.Bubble(t), newView()
					here := oncehttp.Serialize(newLocker(t, r.Client()), one, oncehttp.MaxWait(wait))(v)
					there := here
					if !sameProcess {
						there = oncehttp.Serialize(newLocker(t, r.Client()), one)(v)
					}
					holder := request(t, there, "GET /holder")
					v.running(t, 1)
					began := time.Now()
					request(t, here, "GET /waits").wantRefused(t)
					if took := time.Since(began); took < wait || took > wait+100*time.Millisecond {
						t.Errorf("refused after %v, want %v", took, wait)
					}
					v.answer <- nil
					holder.want(t, http.StatusOK, "done")

					// What has the lock in time is not ended by MaxWait.
					last := request(t, here, "GET /last")
					<-v.began
					inside := (<-v.began).Context()
					time.Sleep(wait + time.Minute)
					if inside.Err() != nil {
						t.Error("MaxWait has ended the context of a handler")
					}
					v.answer <- nil
					last.want(t, http.StatusOK, "done")
				})
			})
		}
	}
}

func TestRequestsThatWaitAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newView()
		h := oncehttp.Serialize(newLocker(t, redistest.Bubble(t).Client()), nil, oncehttp.MaxWaiters(2))(v)
		visits := []*visit{request(t, h, "GET /it")}
		v.running(t, 1)
		visits = append(visits, request(t, h, "GET /it"), request(t, h, "GET /it"))
		synctest.Wait()
		for range 3 {
			request(t, h, "GET /it").wantRefused(t) // at once: time stands still while a handler runs
		}
		other := request(t, h, "GET /other") // has another name
		v.running(t, 2)
		visits[1].leave()
		<-visits[1].done
		visits[1] = request(t, h, "GET /it") // there is a place again
		v.running(t, 2)
		for range 4 {
			v.answer <- nil
		}
		for _, visit := range append(visits, other) {
			visit.want(t, http.StatusOK, "done")
		}
	})
}

func TestOptionsThatCannotBeUsedPanic(t *testing.T) {
	for what, do := range map[string]func(){
		"oncehttp: MaxWait is negative":                     func() { oncehttp.MaxWait(-1) },
		"oncehttp: MaxWaiters is less than 1":               func() { oncehttp.MaxWaiters(0) },
		"oncehttp: BodyTimeout is neither positive nor Off": func() { oncehttp.BodyTimeout(0) },
	} {
		func() {
			defer func() {
				if p := recover(); p != what {
					t.Errorf("panic with %v, want %q", p, what)
				}
			}()
			do()
		}()
	}
	oncehttp.BodyTimeout(fetchonce.Off)
}
