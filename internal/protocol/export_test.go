package protocol

// What the tests look at inside: names that only scripts see, the layout of what
// is said, and the limits.
var (
	MessageHead   = messageHead
	ParseAcquired = parseAcquired
	ParseFilled   = parseFilled

	ParseLockAnswer = parseLockAnswer

	IsReadOnly = isReadOnly
	Passing    = passing
	IsApart    = isApart
)

const (
	Longest        = longest
	StageAbove     = stageAbove
	TellSingle     = tellSingle
	TellCluster    = tellCluster
	TellWaiters    = tellWaiters
	MostWaiters    = mostWaiters
	LongestFailure = longestFailure
)

func (f Failure) Encode() string { return f.encode() }

func (k Key) Meta() string               { return k.meta() }
func (k Key) Marks() string              { return k.marks() }
func (k Key) Staged(owner string) string { return k.staged(owner) }
func (l Lock) Names() []string {
	return []string{l.keys[0].(string), l.keys[1].(string)}
}
