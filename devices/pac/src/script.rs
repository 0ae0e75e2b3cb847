//! The script's interpreter, `QuickJS`, with a limit to the memory that a script has, and to its time.

use std::cell::Cell;
use std::net::IpAddr;
use std::process::exit;
use std::rc::Rc;
use std::time::{Duration, Instant};

use cabana_os::Channel;
use cabana_pac::link::{self, MAX_NAME, Reply, Request};
use rquickjs::context::EvalOptions;
use rquickjs::{CatchResultExt, CaughtError, Coerced, Context, Ctx, Function, Runtime};

/// What every script may call.
const FUNCTIONS: &str = include_str!("functions.js");
/// Bytes that a script has.
const MEMORY: usize = 32 << 20;
/// Bytes of its stack.
const STACK: usize = 256 << 10;
/// How long it may compute.
const TIME: Duration = Duration::from_secs(2);

/// Reads the files that say which time it is here, which the C library does once.
pub(crate) fn learn_time_zone() {
    let runtime = Runtime::new().and_then(|runtime| Context::full(&runtime));
    // Whoever has no memory for this will hear of it with the script.
    let _ = runtime.map(|context| {
        context.with(|ctx| ctx.eval::<i32, _>("new Date().getTimezoneOffset()").ok())
    });
}

/// A script that is ready to be asked.
pub(crate) struct Script {
    context: Context,
    runtime: Runtime,
    /// When it has to be done.
    until: Rc<Cell<Instant>>,
}

impl Script {
    /// Runs a script once, so that its functions are there; what they want to know is asked on the channel.
    pub(crate) fn new(text: &str, channel: &Rc<Channel>) -> Result<Self, String> {
        let none = |error: rquickjs::Error| error.to_string();
        let runtime = Runtime::new().map_err(none)?;
        runtime.set_memory_limit(MEMORY);
        runtime.set_max_stack_size(STACK);
        let until = Rc::new(Cell::new(Instant::now() + TIME));
        let limit = Rc::clone(&until);
        runtime.set_interrupt_handler(Some(Box::new(move || Instant::now() > limit.get())));
        let context = Context::full(&runtime).map_err(none)?;
        let script = Self { context, runtime, until };
        script.with(|ctx| {
            let globals = ctx.globals();
            let world = Rc::clone(channel);
            let resolve = move |host: String| resolve(&world, host);
            globals.set("dnsResolveEx", Function::new(ctx.clone(), resolve))?;
            let world = Rc::clone(channel);
            let own_addresses = move || ask(&world, &Reply::OwnAddresses);
            globals.set("myIpAddressEx", Function::new(ctx.clone(), own_addresses))?;
            let within = |address: String, prefix: String| is_within(&address, &prefix);
            globals.set("isWithin", Function::new(ctx.clone(), within))?;
            for text in [FUNCTIONS, text] {
                let mut options = EvalOptions::default();
                // As in browsers: scripts of that age assign to what they have not declared.
                options.strict = false;
                ctx.eval_with_options::<(), _>(text, options)?;
            }
            globals.get::<_, Function<'_>>("FindProxyForURL").map(drop)
        })?;
        Ok(script)
    }

    /// What the script says to a URL.
    pub(crate) fn find(&self, url: &str, host: &str) -> Result<String, String> {
        self.with(|ctx| {
            let find: Function<'_> = ctx.globals().get("FindProxyForURL")?;
            let said: Option<String> = find.call((url, host))?;
            Ok(said.unwrap_or_default())
        })
    }

    fn with<R>(&self, work: impl FnOnce(&Ctx<'_>) -> rquickjs::Result<R>) -> Result<R, String> {
        self.until.set(Instant::now() + TIME);
        let done = self.context.with(|ctx| {
            work(&ctx).catch(&ctx).map_err(|error| match error {
                CaughtError::Exception(error) => error.message().unwrap_or_default(),
                CaughtError::Value(thrown) => {
                    thrown.get::<Coerced<String>>().map(|text| text.0).unwrap_or_default()
                }
                CaughtError::Error(error) => error.to_string(),
            })
        });
        if Instant::now() > self.until.get() {
            self.runtime.run_gc();
        }
        done
    }
}

/// Every address of a name, apart by semicolons; nothing if there is none.
fn resolve(world: &Channel, host: String) -> String {
    match host.parse::<IpAddr>() {
        Ok(_) => host,
        Err(_) if host.len() > MAX_NAME => String::new(),
        Err(_) => ask(world, &Reply::Resolve(host)),
    }
}

/// Addresses that the parent knows. Without a parent there is nothing left to do.
fn ask(world: &Channel, question: &Reply) -> String {
    let asked = link::send(world, question).and_then(|()| link::receive(world));
    match asked {
        Ok(Some(Request::Addresses(addresses))) => {
            let words: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
            words.join(";")
        }
        Ok(None) => exit(0),
        _ => exit(1),
    }
}

/// Whether an address lies in a network such as `2001:db8::/32`.
fn is_within(address: &str, prefix: &str) -> bool {
    let parsed = address.parse::<IpAddr>().ok().zip(prefix.parse::<ipnet::IpNet>().ok());
    parsed.is_some_and(|(address, network)| network.contains(&address))
}
