// Package bisect finds the keys for which a call with many keys fails. Lookups of many keys use it,
// so one key or row does not fail the others.
package bisect

// mostExcess is how many more calls may fail than succeed. It allows finding about sixteen bad
// keys, and limits the calls to a server that refuses all of them.
const mostExcess = 32

// Keys calls do for all parts, and for halves of each part that fails, until a
// failed part is a single key. It returns the error of each key that failed.
//
// common reports whether an error concerns all keys, such as a lost connection. After such an
// error, or after too many failures, Keys makes no further call: all remaining keys have the
// last error.
func Keys(parts [][]string, do func(keys []string) error, common func(err error) bool) map[string]error {
	errs := make(map[string]error)
	excess := 0
	for len(parts) > 0 {
		keys := parts[0]
		err := do(keys)
		if err == nil {
			excess = max(excess-1, 0)
			parts = parts[1:]
			continue
		}
		excess++
		if common(err) || excess > mostExcess {
			for _, left := range parts {
				failAll(errs, left, err)
			}
			return errs
		}
		parts = parts[1:]
		if len(keys) == 1 {
			errs[keys[0]] = err
			continue
		}
		half := len(keys) / 2
		parts = append(parts, keys[:half], keys[half:])
	}
	return errs
}

func failAll(errs map[string]error, keys []string, err error) {
	for _, key := range keys {
		errs[key] = err
	}
}
