import sys; sys.path.insert(0,'tests/web'); sys.path.insert(0,'tests')
import fuzz, itertools, time, collections
from node import *
from opq.errors import *
CODES={'CorruptFileError':'corrupt','NewerFormatError':'newer','FileTooLargeError':'too-large','ForeignFileError':'foreign','TruncatedFileError':'truncated'}
N=int(sys.argv[1]); seed=int(sys.argv[2])
fuzz.narrowed()
c=collections.Counter(); bad=[]; slow=0; tj=0;tp=0
with Node() as n:
    n.ask(narrowed=[1<<16,1<<10,1<<9])
    for k,(num,case) in enumerate(itertools.islice(fuzz.cases(seed),N)):
        t=time.time()
        try:
            plan,state=fuzz.everything(case.data); py=None
        except fuzz.FileFormatError as e: py=CODES[type(e).__name__]; pe=e
        tp+=time.time()-t; t=time.time()
        r=n.ask(case.data,options={'maxExpansion':100.0,'workers':0})
        d=time.time()-t; slow=max(slow,d); tj+=d
        if 'error' in r:
            e=r['error']
            c[(py,e['code'] if e['ours'] else 'X')]+=1
            if not e['ours']: bad.append((k,case.kind,e['stack'][:600]))
            elif e['code']!=py:
                bad.append((k,case.kind,py and str(pe),e['message']))
        elif py: bad.append((k,case.kind,'JS reads',str(pe)))
        else:
            c['read']+=1
            for t in r['tensor']:
                w=state[t['name']]
                if digest(w)!=t['digest'] or list(w.shape)!=t['shape']: bad.append((k,case.kind,'differs',t['name'],t['dtype']))
print(c, slow, tp, tj, len(bad))
for b in bad[:40]: print(b)
