"""From files to packed rows: the same path for every objective. `load.py` is the way in, and tells it in order.

Where rows come from
    source      the rows of a source, whatever it is, with the place of each
    registry    names of datasets, and what a registry says of each
    files       the rows of one file, by its kind: a kind is one function and a line of `KINDS`
    unpacked    its bytes, decompressed
    remote      files in object stores and on the web
    hubs        datasets of hubs: a hub is a name in `remote.HUBS` and what fetches a copy in `CLIENTS`
    digests     digests of files, those of large ones kept

From a row to tokens
    render      rows to samples: read, written, tokenised once, kept or dropped
    rendered    a sample as tokens, or why there is none
    loss        what of a conversation is learned, as characters of its text
    place       the same as a weight for each token
    prompt      the tokens before an answer, as chat and serving send them
    parity      the gate: what is trained is what they send and stop at
    overlong    samples that are too long: truncated or split
    shared      what the sequences of a sample begin with in common
    sides       a conversation as what an encoder reads and what a decoder writes
    refuse      which rows are refused, and when the whole source is
    workers     rendering in processes of its own

Samples that are kept
    prepare     sources to a store, from the cache where they lie there
    store       rendered samples on disk, read by memory map
    duplicates  samples that equal or nearly equal another
    choose      which are trained on, held out, or left out
    mix         the samples of each epoch, in order
    pack        which samples stand together in a row
    mismatched  samples with the answer of another one beside their own
    kept        a file of numbers beside kept samples, with digests
    reference   samples with the log-probabilities of a frozen model
    taught      samples with the likeliest words of a teacher
    skip        positions that a sample's tokens stand at, for longer texts than there are
    balance     which process takes which micro-batch of a step: equal work, the same samples
    batch       packed rows as a dataset, and rows joined to a micro-batch

Samples that stream
    stream      the dataset of a run that renders as it goes, and its place in a checkpoint
    blocks      what it shuffles and packs at a time
    reader      one of its sources, from the beginning to the end, again and again

What people see
    ledger      the account: every row is kept or dropped, for a reason
    lengths     how long the samples are
    picture     data.png
    preview     rows as the model will see them, in a terminal or as JSON
    page        the same as one HTML file

Beside a run
    convert     rows in another format and kind of file
    write       rows into one file: a kind is one function and a line of `KINDS`
"""
